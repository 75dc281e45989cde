//! Where log lines go: standard error and, where one is configured, a directory; without secrets, and without ever
//! failing or holding up whoever logs.

use std::io::{self, Write};

use anyhow::Context as _;
use server::{Redactor, config::Log};
use tracing_appender::{
    non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard},
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for the disk.
const LINES_WAITING_MAX: usize = 16_384;

/// Makes a writer for each log line.
pub(crate) struct LogWriter {
    redactor: Redactor,
    /// The lines that wait are written when this is dropped, with the process.
    files: Option<(NonBlocking, WorkerGuard)>,
}

impl LogWriter {
    pub(crate) fn new(redactor: Redactor, log: &Log) -> anyhow::Result<Self> {
        let files = log.directory.as_ref().map(|directory| {
            let files = RollingFileAppender::builder()
                .rotation(Rotation::DAILY)
                .filename_prefix("orchestra")
                .filename_suffix("log")
                .max_log_files(log.days_kept)
                .build(directory)
                .with_context(|| format!("log.directory: {}", directory.display()))?;
            let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX).lossy(true);
            anyhow::Ok(builder.thread_name("log").finish(files))
        });
        Ok(Self { redactor, files: files.transpose()? })
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { redactor: &self.redactor, files: self.files.as_ref().map(|(files, _)| files.clone()) }
    }
}

/// Writes a log line. Libraries log as well, and know nothing of what is secret here.
pub(crate) struct Line<'a> {
    redactor: &'a Redactor,
    files: Option<NonBlocking>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let text = self.redactor.redact(&text);
        // Lost, if standard error is closed or its disk is full.
        let _ = io::stderr().write_all(text.as_bytes());
        if let Some(files) = &mut self.files {
            // Lost, if too many wait.
            let _ = files.write_all(text.as_bytes());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
