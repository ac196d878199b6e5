//! Printing: one JSON value, or tables that people read.

use std::io::{IsTerminal, Write};

use client::quantity::size_text;
use client::{OnProgress, OnWaiting};
use node::Clock;
use serde_json::{Value, json};
use wire::Duration;

/// How this process prints.
pub struct Output {
    json: bool,
    quiet: bool,
    color: bool,
}

impl Output {
    pub fn new(json: bool, quiet: bool, no_color: bool) -> Self {
        let color = !json && !no_color && std::env::var_os("NO_COLOR").is_none() && std::io::stdout().is_terminal();
        Self { json, quiet, color }
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// True when a person wants to see how far things are.
    pub fn shows_progress(&self) -> bool {
        !self.json && !self.quiet
    }

    /// Shows on a terminal how far a transfer is, once it has taken a while.
    pub fn transfer_progress(&self, clock: Clock) -> Option<OnProgress> {
        const SHOWN_AFTER: Duration = Duration::from_millis(500);
        const SHOW_INTERVAL: Duration = Duration::from_millis(100);
        if !self.shows_progress() || !std::io::stderr().is_terminal() {
            return None;
        }
        let mut next = clock.now() + SHOWN_AFTER;
        let mut is_shown = false;
        Some(Box::new(move |done, total| {
            let is_whole = total == Some(done);
            if is_whole && std::mem::take(&mut is_shown) {
                eprint!("\r\x1b[K");
            } else if !is_whole && clock.now() >= next {
                let of = total.map_or(String::new(), |total| format!(" of {}", size_text(total)));
                eprint!("\r\x1b[K{}{of}", size_text(done));
                is_shown = true;
                next = clock.now() + SHOW_INTERVAL;
            }
        }))
    }

    /// Tells a person that the cluster is slow to answer, and `then` what he may do meanwhile.
    pub fn waiting(&self, then: &str) -> Option<OnWaiting> {
        if self.quiet || self.json {
            return None;
        }
        let then = then.to_owned();
        Some(Box::new(move |why| eprintln!("zg: {why}{then}")))
    }

    /// Prints `value` as the command's one JSON value, or what `text` makes of it.
    pub fn value(&self, key: &str, value: Value, text: impl FnOnce() -> String) {
        if self.json {
            let mut whole = json!({ "schema_version": 1 });
            whole[key] = value;
            print(&whole.to_string());
            return;
        }
        let text = text();
        if !text.is_empty() {
            print(text.trim_end_matches('\n'));
        }
    }

    /// Tells a person what happens, on standard error; not with `--quiet` or `--json`.
    pub fn note(&self, text: &str) {
        if !self.quiet && !self.json {
            eprintln!("{text}");
        }
    }

    /// A state in its color, padded to `width` first.
    pub fn state(&self, word: &str, width: usize) -> String {
        let padded = format!("{word:<width$}");
        let code = match word {
            "finished" | "up" => "32",
            "failed" | "aborted" | "lost" => "31",
            "canceled" | "draining" => "33",
            "running" => "36",
            _ => return padded,
        };
        if self.color { format!("\x1b[{code}m{padded}\x1b[0m") } else { padded }
    }

    /// A table under `headers`. Columns whose header starts with `>` are aligned right; the column `STATE` is colored.
    pub fn table(&self, headers: &[&str], rows: &[Vec<String>]) -> String {
        let titles: Vec<&str> = headers.iter().map(|header| header.trim_start_matches('>')).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([titles[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..headers.len()).map(width).collect();
        let mut text = String::new();
        let mut line = |cells: &[String], is_title: bool| {
            let padded = cells.iter().enumerate().map(|(column, cell)| match headers[column] {
                "STATE" if !is_title => self.state(cell, widths[column]),
                header if header.starts_with('>') => format!("{cell:>0$}", widths[column]),
                _ => format!("{cell:<0$}", widths[column]),
            });
            text += padded.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        };
        line(&titles.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>(), true);
        rows.iter().for_each(|row| line(row, false));
        text
    }
}

/// Prints a line on standard output.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    // A reader that is gone has ended this process by SIGPIPE, or does not want the rest.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

/// Text of others as one cell of a table: control characters must not move the cursor.
pub fn cell(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_their_columns() {
        let output = Output::new(false, false, true);
        let rows = [vec!["1".to_owned(), "häuser".into()], vec!["12".into(), "b".into()]];
        assert_eq!(output.table(&[">ID", "NAME"], &rows), "ID  NAME\n 1  häuser\n12  b\n");
    }

    #[test]
    fn names_of_others_cannot_move_the_cursor() {
        assert_eq!(cell(b"a\x1b[2Jb\n\xff"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
    }
}
