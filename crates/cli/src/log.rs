//! Where log lines go: standard error, without secrets, and without ever failing.

use std::io::{self, Write};

use server::Redactor;
use tracing_subscriber::fmt::MakeWriter;

/// Makes a writer for each log line.
pub(crate) struct LogWriter {
    redactor: Redactor,
}

impl LogWriter {
    pub(crate) fn new(redactor: Redactor) -> Self {
        Self { redactor }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { redactor: &self.redactor }
    }
}

/// Writes a log line. Libraries log as well, and know nothing of what is secret here.
pub(crate) struct Line<'a> {
    redactor: &'a Redactor,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        // Lost, if standard error is closed or its disk is full.
        let _ = io::stderr().write_all(self.redactor.redact(&text).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
