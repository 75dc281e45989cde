//! Every limit of the machine, with what it protects. A request above one is refused at the door with the limit
//! named.

/// Nodes of a workflow. Node numbers are 16 bits wide.
pub const NODES_MAX: usize = 10_000;

/// How deep blocks of steps nest. Bounds the walk from a failed step to the container that tolerates the failure.
pub const NESTING_MAX: usize = 16;

/// Bytes of one value: an input, an output, a signal's payload, a map's list of items.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;

/// Items of one map. All of them arrive in one command.
pub const MAP_ITEMS_MAX: usize = 10_000;

/// Items of one map in flight at once.
pub const MAP_PARALLEL_MAX: u16 = 256;

/// Iterations of one loop.
pub const LOOP_ITERATIONS_MAX: u32 = 10_000;

/// Bytes of a name: of a workflow, a step, a signal, a label's key, a tenant.
pub const NAME_BYTES_MAX: usize = 128;

/// Labels of a session.
pub const LABELS_MAX: usize = 32;

/// Signals that wait for a step of their session to ask for them.
pub const BUFFERED_SIGNALS_MAX: u32 = 1_000;

/// Timers fired by one command. Bounds what one entry of the log costs.
pub const TIMERS_PER_COMMAND: usize = 256;

/// Steps re-dispatched by one command.
pub const REDISPATCH_PER_COMMAND: usize = 1_024;

/// Rows removed by one firing of a session's retention timer.
pub const SWEEP_ROWS_PER_COMMAND: usize = 1_024;

/// Events of a session that is imported or forked. They are applied again in one command.
pub const IMPORT_EVENTS_MAX: usize = 10_000;

/// Retries of such a session, each of which looks at all of its steps.
pub const IMPORT_RETRIES_MAX: usize = 100;

/// Bytes of such a session, as it is encoded.
pub const IMPORT_BYTES_MAX: usize = 4 << 20;

/// The longest pause between two attempts that a vendor can ask for, in milliseconds.
pub const PAUSE_MS_MAX: u32 = 3_600_000;

/// Bytes kept of an error message.
pub const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// How long an ended session is kept where nothing else is said: 7 days.
pub const RETENTION_MS_DEFAULT: u64 = 7 * 24 * 3600 * 1000;

const _: () = assert!(NODES_MAX <= u16::MAX as usize, "node numbers are 16 bits wide");
const _: () = assert!(MAP_PARALLEL_MAX as usize <= MAP_ITEMS_MAX, "a window is not wider than its list");
