//! `print!` and `println!` for images. Lines wait in the log area and leave with the next call, so
//! that a log line costs no exit.

use core::fmt::{Arguments, Write as _};

struct LogArea;

impl core::fmt::Write for LogArea {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        crate::entry::log_write(text.as_bytes());
        Ok(())
    }
}

/// Appends formatted text to the log.
pub fn print(arguments: Arguments<'_>) {
    let written = LogArea.write_fmt(arguments);
    debug_assert!(written.is_ok(), "a Display implementation failed");
}

/// Appends a formatted line to the log.
pub fn print_line(arguments: Arguments<'_>) {
    print(arguments);
    print(format_args!("\n"));
}

/// Appends formatted text to the log.
#[macro_export]
macro_rules! print {
    ($($arguments:tt)*) => { $crate::log::print(format_args!($($arguments)*)) };
}

/// Appends a formatted line to the log.
#[macro_export]
macro_rules! println {
    ($($arguments:tt)*) => { $crate::log::print_line(format_args!($($arguments)*)) };
}
