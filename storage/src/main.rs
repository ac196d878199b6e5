//! `zg-storage SETTINGS.toml`: runs a storage node until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: zg-storage SETTINGS.toml";

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
    let ended = storage::Config::load(&path).map_err(Into::into).and_then(|config| storage::shell::run(&config));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zg-storage: {error}");
            ExitCode::FAILURE
        }
    }
}
