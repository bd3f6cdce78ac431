//! Runs programs in the guest and says how long each took, on the guest's own clock: a line with a program's words
//! in JSON comes in, a line with its end goes out.

use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// The word by which `bench` becomes the timer.
pub const WORD: &str = "timer";

/// How a program ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its exit code, or 128.
    pub code: i32,
    /// From its start until its end was known and its output read.
    pub ms: f64,
    /// What it wrote to its standard output.
    pub said: String,
    /// And to its standard error.
    pub complained: String,
}

/// The guest's side: serves lines until there are no more.
///
/// # Errors
/// When a line is none, or a program cannot be started.
pub fn serve() -> Result<()> {
    for line in std::io::stdin().lock().lines() {
        let words: Vec<String> = serde_json::from_str(&line?)?;
        let answer = run(&words)?;
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&answer)?)?;
        stdout.flush()?;
    }
    Ok(())
}

fn run(words: &[String]) -> Result<Answer> {
    let (program, arguments) = words.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // A container that goes on has its runtime's output: it must be no pipe, whose end would never come.
    if words.iter().any(|word| word == "--detach") {
        command.stdout(Stdio::null());
        command.stderr(std::fs::File::create("/run/complaint")?);
    } else {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let since = Instant::now();
    let output = command.spawn()?.wait_with_output()?;
    let ms = since.elapsed().as_secs_f64() * 1000.0;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Answer {
        code: output.status.code().unwrap_or(128),
        ms,
        said: text(&output.stdout),
        complained: std::fs::read_to_string("/run/complaint").unwrap_or_default()
            + &text(&output.stderr),
    })
}

/// The host's side.
#[derive(Debug)]
pub struct Timer {
    /// The ends of the streams of the timer's process.
    pub stdin: File,
    /// Lines that come back.
    pub stdout: BufReader<File>,
}

impl Timer {
    /// Runs a program in the guest.
    ///
    /// # Errors
    /// When the timer has ended.
    pub async fn run(&mut self, words: &[&str]) -> Result<Answer> {
        let line = serde_json::to_string(words)? + "\n";
        self.stdin.write_all(line.as_bytes()).await?;
        self.stdin.flush().await?;
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).await?;
        serde_json::from_str(&answer).with_context(|| format!("the timer said {answer:?}"))
    }
}
