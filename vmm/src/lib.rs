//! A purpose-built virtual machine monitor for guests without a ring 0
#![forbid(unsafe_code)]
