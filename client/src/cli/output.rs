//! Printing: one JSON value, or tables that people read.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

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

    /// Shows how far a transfer is, once it has taken a while: a bar on a terminal, a line now and then elsewhere.
    pub fn transfer_progress(&self, clock: Clock) -> Option<OnProgress> {
        const BAR_AFTER: Duration = Duration::from_millis(500);
        const BAR_INTERVAL: Duration = Duration::from_millis(100);
        const LINE_INTERVAL: Duration = Duration::from_secs(10);
        if !self.shows_progress() {
            return None;
        }
        let is_terminal = std::io::stderr().is_terminal();
        let interval = if is_terminal { BAR_INTERVAL } else { LINE_INTERVAL };
        let begun = clock.now();
        let mut next = begun + if is_terminal { BAR_AFTER } else { LINE_INTERVAL };
        let mut before = None;
        let mut is_shown = false;
        Some(Box::new(move |done, total| {
            // What was there before us is no merit of ours.
            let before = *before.get_or_insert(done);
            let is_whole = total == Some(done);
            if is_whole && std::mem::take(&mut is_shown) {
                tell("\r\x1b[K");
            } else if !is_whole && clock.now() >= next {
                let text =
                    progress_text(done, total, done.saturating_sub(before), clock.now().since(begun), is_terminal);
                if is_terminal {
                    tell(&format!("\r\x1b[K{text}"));
                } else {
                    tell(&format!("zg: {text}\n"));
                }
                is_shown = is_terminal;
                next = clock.now() + interval;
            }
        }))
    }

    /// Tells a person that the cluster is slow to answer, and `then` what he may do meanwhile.
    pub fn waiting(&self, then: &str) -> Option<OnWaiting> {
        if self.quiet || self.json {
            return None;
        }
        let then = then.to_owned();
        Some(Box::new(move |why| tell(&format!("zg: {why}{then}\n"))))
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
            tell(&format!("{}\n", cell(text.as_bytes())));
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

/// How far a transfer is that has moved `moved` bytes in `elapsed`.
fn progress_text(done: u64, total: Option<u64>, moved: u64, elapsed: Duration, with_bar: bool) -> String {
    const BAR_WIDTH: u64 = 24;
    let rate = moved as f64 / elapsed.as_secs_f64().max(0.001);
    let rate_text = format!("{}/s", size_text(rate as u64));
    let Some(total) = total.filter(|total| *total > 0) else { return format!("{}  {rate_text}", size_text(done)) };
    let part = |of: u64| (u128::from(done.min(total)) * u128::from(of) / u128::from(total)) as u64;
    let mut text = String::new();
    if with_bar {
        let filled = part(BAR_WIDTH) as usize;
        text = format!("[{}{}] ", "#".repeat(filled), "-".repeat(BAR_WIDTH as usize - filled));
    }
    text += &format!("{:>3} %  {} of {}  {rate_text}", part(100), size_text(done), size_text(total));
    if moved > 0 {
        text += &format!("  {:.0} s left", total.saturating_sub(done) as f64 / rate);
    }
    text
}

/// Something that was asked for could not be printed.
static IS_CUT: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output. What it cannot print is told, and makes the command fail in the end.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush()) else { return };
    // A reader that is gone does not want the rest.
    if error.kind() != ErrorKind::BrokenPipe && !IS_CUT.swap(true, Ordering::Relaxed) {
        tell(&format!("error: cannot print: {error}. What was asked for is done\n"));
    }
}

/// False = something that `print` was given is lost.
pub fn is_whole() -> bool {
    !IS_CUT.load(Ordering::Relaxed)
}

/// Writes on standard error. Nobody may be there to read it; a command does what it does all the same.
pub fn tell(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Text with words of others, as names of files, on one line or in one cell of a table: control characters must not move the cursor.
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
    fn progress_tells_the_part_the_rate_and_the_rest() {
        let elapsed = Duration::from_secs(2);
        let text = progress_text(3 << 20, Some(4 << 20), 2 << 20, elapsed, true);
        assert_eq!(text, "[##################------]  75 %  3.0 MiB of 4.0 MiB  1.0 MiB/s  1 s left");
        assert_eq!(progress_text(0, Some(10), 0, elapsed, false), "  0 %  0 B of 10 B  0 B/s");
        assert_eq!(progress_text(2048, None, 2048, elapsed, true), "2.0 KiB  1.0 KiB/s");
        assert!(progress_text(9, Some(5), 1, Duration::ZERO, true).contains("100 %"), "more than was expected");
    }

    #[test]
    fn names_of_others_cannot_move_the_cursor() {
        assert_eq!(cell(b"a\x1b[2Jb\n\xff"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
    }
}
