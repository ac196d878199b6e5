//! Logs: one line per event to standard error, with time and level.

use tracing_subscriber::EnvFilter;

/// The environment variable that sets the level, as `debug` or `info,node=trace`.
pub const LEVEL_VARIABLE: &str = "ZG_LOG";

/// Starts logging at the level in `ZG_LOG`, else at `info`. A second call changes nothing.
pub fn init() {
    let asked = std::env::var(LEVEL_VARIABLE).unwrap_or_default();
    let (filter, wrong) = match EnvFilter::try_new(if asked.is_empty() { "info" } else { &asked }) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A line that cannot be written is lost; telling so on the same closed pipe would panic.
        .log_internal_errors(false)
        .try_init()
        .is_ok();
    if let (true, Some(error)) = (started, wrong) {
        tracing::warn!("{LEVEL_VARIABLE}='{asked}' is not a log filter ({error}); logging at info");
    }
}
