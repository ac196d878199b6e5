//! Logs: one line per event to standard error, with time and level.

use std::sync::Once;

use tracing_subscriber::EnvFilter;

/// The environment variable that sets the level, as `debug` or `info,node=trace`.
pub const LEVEL_VARIABLE: &str = "ZG_LOG";

/// Starts logging at the level in `ZG_LOG`, else at `info`, and has a panic of any thread end the process: half a process
/// that goes on is worse than none. A second call changes nothing.
pub fn init() {
    static PANICS: Once = Once::new();
    PANICS.call_once(|| {
        let say = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            say(panic);
            std::process::abort();
        }));
    });
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

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    const CHILD: &str = "ZG_TEST_PANIC_OF_A_THREAD";

    #[test]
    fn a_panic_of_any_thread_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::init();
            let _ = std::thread::spawn(|| panic!("of a thread")).join();
            std::process::exit(0);
        }
        let program = std::env::current_exe().expect("this program has a path");
        let child = Command::new(program)
            .args(["--exact", "log::tests::a_panic_of_any_thread_ends_the_process"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("it starts");
        assert_eq!(child.signal(), Some(libc::SIGABRT), "{child:?}");
    }
}
