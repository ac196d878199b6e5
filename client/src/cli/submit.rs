//! `zg submit`: a job into the masters' log.

use std::ffi::OsString;

use clap::Args;
use serde_json::json;

use super::flags::Flags;
use super::job::Waiting;
use super::{Context, Outcome, command};

#[derive(Args)]
pub struct Submit {
    #[command(flatten)]
    flags: Flags,
    /// Wait until the job has ended, and exit as `zg job wait` does
    #[arg(long)]
    wait: bool,
    /// The command: ./PROGRAM is sent along, any other is looked up on the worker; {} and %{CHUNK} are the chunk's number
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl Submit {
    pub fn execute(self, context: &Context) -> Outcome {
        let mut connection = context.connect()?;
        let draft = command::prepare(&mut connection, self.flags, &self.command, &context.output)?;
        let submitted = connection.submit(&draft)?;
        let job = json!({ "id": submitted.job.to_string(), "number": submitted.number });
        context.output.value("job", job, || format!("job {} ({})", submitted.number, submitted.job));
        if !self.wait {
            return Ok(0);
        }
        super::job::follow(&mut connection, &context.output, submitted.number);
        let mut waiting = Waiting::new(&context.output);
        let record = connection.wait_job(submitted.job, None, |record| waiting.show(record));
        waiting.end();
        let record = record.map_err(|error| super::job::lost_sight(error, submitted.number))?;
        super::job::conclude(&context.output, &[record], false)
    }
}
