//! Where log lines go: standard error and, where they are configured, a directory and a collector; without secrets, and
//! without ever failing or holding up whoever logs.

mod sink;

use std::io::{self, Write};

use anyhow::Context as _;
use server::{Redactor, config::Log};
use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for the disk, and as many for the collector.
const LINES_WAITING_MAX: usize = 16_384;

/// Makes a writer for each log line.
pub(crate) struct LogWriter {
    redactor: Redactor,
    /// A directory, a collector.
    others: [Option<NonBlocking>; 2],
}

/// Lines that wait are written when this is dropped, for a second at most.
#[derive(Debug)]
#[must_use]
pub(crate) struct Waiting(#[expect(dead_code, reason = "dropped")] Vec<WorkerGuard>);

impl LogWriter {
    pub(crate) fn new(redactor: Redactor, log: &Log) -> anyhow::Result<(Self, Waiting)> {
        let apart = |name: &str| {
            let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true);
            builder.thread_name(name)
        };
        let files = log.directory.as_ref().map(|directory| {
            let files = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix("orchestra")
                .filename_suffix("log")
                .max_log_files(log.days_kept)
                .build(directory)
                .with_context(|| format!("log.directory: {}", directory.display()))?;
            anyhow::Ok(apart("log").finish(files))
        });
        let collector = sink::Sink::new(log)?.map(|sink| apart("log-sink").finish(sink));
        let (lines, guards): (Vec<_>, Vec<_>) =
            [files.transpose()?, collector].into_iter().map(Option::unzip).unzip();
        let others = [lines[0].clone(), lines[1].clone()];
        Ok((Self { redactor, others }, Waiting(guards.into_iter().flatten().collect())))
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { redactor: &self.redactor, others: self.others.clone() }
    }
}

/// Writes a log line. Libraries log as well, and know nothing of what is secret here.
pub(crate) struct Line<'a> {
    redactor: &'a Redactor,
    others: [Option<NonBlocking>; 2],
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = self.redactor.redact(&text);
        // Lost, if standard error is closed or its disk is full.
        let _ = io::stderr().write_all(text.as_bytes());
        for lines in self.others.iter_mut().flatten() {
            // Lost, if too many wait.
            let _ = lines.write_all(text.as_bytes());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
