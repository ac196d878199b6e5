//! `zg-master SETTINGS.toml`: runs a master until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: zg-master SETTINGS.toml";

// The program that people run has no bugs on purpose.
const _: () = assert!(!planted::IS_BUILT_IN);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (path, more) = (arguments.next(), arguments.next());
    let path = match (path, more) {
        (Some(path), None) if path == "--help" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        (Some(path), None) => PathBuf::from(path),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    node::log::init();
    let ended = master::Config::load(&path)
        .map_err(|error| error.to_string())
        .and_then(|config| master::shell::run(&config).map_err(|error| error.to_string()));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zg-master: {error}");
            ExitCode::FAILURE
        }
    }
}
