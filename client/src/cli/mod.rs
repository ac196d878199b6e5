//! The commands: one file for each noun; what they share is how they print (`output`) and how they fail (`failure`).

mod chunk;
mod command;
mod dev;
mod failure;
mod file;
mod flags;
mod job;
mod node;
mod output;
mod run;
mod script;
mod shape;
mod status;
mod submit;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ColorChoice, CommandFactory, FromArgMatches, Parser, Subcommand};
use client::{Cluster, Connection};

use failure::Failure;
use output::Output;

/// What a command comes to: the exit code of `zg`.
type Outcome = Result<u8, Failure>;

/// Runs arrays of programs on many machines.
#[derive(Parser)]
#[command(name = "zg", version, propagate_version = false, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Global {
    /// The cluster directory [default: $ZG_CLUSTER, the running `zg dev`, ~/.config/ziggurat]
    #[arg(long, global = true, value_name = "DIR")]
    cluster: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// Print only what was asked for
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Color states on a terminal (NO_COLOR turns it off too)
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", value_parser = ["auto", "never"])]
    color: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Submit a job: an array of chunks that run one command
    Submit(submit::Submit),
    /// Submit a job, wait for it, print what it prints, exit as it does
    ///
    /// What a chunk has printed is shown whole, as soon as that chunk has ended: in the order in which they end. Ctrl-C
    /// cancels the job.
    Run(run::Run),
    /// List, show, wait for, cancel jobs; read what they wrote
    #[command(subcommand)]
    Job(job::Job),
    /// List the chunks of a job
    #[command(subcommand)]
    Chunk(chunk::Chunk),
    /// Store and read files
    #[command(subcommand)]
    File(file::FileVerb),
    /// List the nodes of the cluster
    #[command(subcommand)]
    Node(node::Node),
    /// Show the state of the cluster
    Status,
    /// Start a whole cluster on this machine; Ctrl-C stops it
    Dev(dev::Dev),
    /// Print the version
    Version,
}

/// Where a command finds its cluster and how it prints.
struct Context {
    cluster: Option<PathBuf>,
    output: Output,
}

impl Context {
    /// A connection to the cluster that the command line names; nothing is said yet.
    fn connect(&self) -> Result<Connection, Failure> {
        let dir = Cluster::find(self.cluster.as_deref())?;
        let mut connection = Connection::open(Cluster::load(&dir)?)?;
        connection.on_waiting = self.output.waiting("");
        Ok(connection)
    }
}

/// Runs the command that the process was given.
pub fn main() -> ExitCode {
    let wants_json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    let cli = match parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && wants_json => {
            // What follows the first paragraph is advice for people.
            let text = error.render().to_string();
            let message = text.split("\n\n").next().unwrap_or_default();
            return Failure::usage(message.trim_start_matches("error: ")).hint("See: zg --help").print(true);
        }
        // Help and version are no errors; clap knows where each goes and how it exits.
        Err(error) => error.exit(),
    };
    let output = Output::new(cli.global.json, cli.global.quiet, cli.global.color == "never");
    let context = Context { cluster: cli.global.cluster, output };
    let outcome = match cli.verb {
        Verb::Submit(submit) => submit.execute(&context),
        Verb::Run(run) => run.execute(&context),
        Verb::Job(job) => job.execute(&context),
        Verb::Chunk(chunk) => chunk.execute(&context),
        Verb::File(file) => file.execute(&context),
        Verb::Node(node) => node.execute(&context),
        Verb::Status => status::execute(&context),
        Verb::Dev(dev) => dev.execute(&context),
        Verb::Version => status::version(&context),
    };
    match outcome {
        Ok(0) if !output::is_whole() => ExitCode::FAILURE,
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.print(context.output.is_json()),
    }
}

fn parse() -> Result<Cli, clap::Error> {
    let color = if std::env::var_os("NO_COLOR").is_some() { ColorChoice::Never } else { ColorChoice::Auto };
    let mut command = Cli::command().color(color);
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_that_are_not_there_yet_are_refused() {
        for flags in [&["--gpus", "1"][..], &["--nonsense"], &["--after", "ok:1"], &["--image", "x"], &["--cache"]] {
            let words = [&["zg", "submit"], flags, &["--", "true"]].concat();
            let error = Cli::try_parse_from(words).err().expect("the flag is not known");
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(flags[0]), "{error}");
        }
    }

    #[test]
    fn what_follows_the_command_belongs_to_it() {
        for words in [&["zg", "submit", "--", "ls", "--json"][..], &["zg", "submit", "ls", "--json"]] {
            let cli = Cli::try_parse_from(words).unwrap();
            assert!(!cli.global.json);
            let Verb::Submit(submit) = cli.verb else { panic!("a submit was given") };
            assert_eq!(submit.command, ["ls", "--json"]);
        }
    }
}
