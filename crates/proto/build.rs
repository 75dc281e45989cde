//! Compiles `/proto` without a `protoc`.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const STORAGE: &str = "orchestra/storage/v1/records.proto";
const SLA: &str = "orchestra/sla/v1/sla.proto";
const PEER: [&str; 2] = ["orchestra/peer/v1/peer.proto", "orchestra/peer/v1/work.proto"];
const API: [&str; 2] = ["orchestra/v1/sessions.proto", "orchestra/v1/workers.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let public = protox::compile(API, [&root])?;
    fs::write(out.join("descriptors.bin"), public.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".orchestra").compile_fds(public)?;
    tonic_prost_build::configure().bytes(".orchestra").compile_fds(protox::compile([STORAGE], [&root])?)?;
    tonic_prost_build::configure().bytes(".orchestra").compile_fds(protox::compile([SLA], [&root])?)?;
    // The records that peers exchange are those of the crate, not another generation of them.
    tonic_prost_build::configure()
        .bytes(".orchestra")
        .extern_path(".orchestra.storage.v1", "crate::storage")
        .compile_fds(protox::compile(PEER, [&root])?)?;
    Ok(())
}
