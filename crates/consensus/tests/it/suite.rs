//! openraft's own conformance suite against our log and state machine.

use std::sync::Arc;

use consensus::conformance::{LogStore, StateMachine, Types};
use ids::ShardId;
use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use storage::{LogDb, LogOptions, StateDb, StateOptions};

struct Builder;

impl StoreBuilder<Types, LogStore, StateMachine, (tempfile::TempDir, LogDb)> for Builder {
    async fn build(
        &self,
    ) -> Result<((tempfile::TempDir, LogDb), LogStore, StateMachine), StorageError<Types>> {
        let temp = tempfile::tempdir().unwrap();
        let options = LogOptions { tail_bytes: 4096, queue_len: 64, batch_bytes: 1 << 20, sync: true };
        let log = LogDb::open(&temp.path().join("log"), options).unwrap();
        let options = StateOptions { block_cache_bytes: 1 << 20, cached_rows: 64 };
        let state = Arc::new(StateDb::open(&temp.path().join("state"), options).unwrap());
        let store = LogStore::new(log.shard(ShardId(1)).unwrap());
        let machine = StateMachine::open(state, ShardId(1)).unwrap();
        Ok(((temp, log), store, machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_storage_conforms() {
    Suite::test_all(Builder).await.unwrap();
}
