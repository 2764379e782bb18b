//! The programs that ship as images, as libraries: the image only connects them to its devices.

pub mod kv;
pub mod load;
pub mod options;
