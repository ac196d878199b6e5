//! `zg-loadbalancer SETTINGS.toml`: runs a load balancer until SIGTERM or SIGINT.

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: zg-loadbalancer SETTINGS.toml";

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
    let config = loadbalancer::config::Config::load(&path);
    match config.map_err(Into::into).and_then(|config| loadbalancer::shell::run(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zg-loadbalancer: {error}");
            ExitCode::FAILURE
        }
    }
}
