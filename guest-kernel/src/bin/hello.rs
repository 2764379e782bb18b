//! The smallest guest: greets and ends.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

guest_kernel::main!(hello);

fn hello() -> u32 {
    guest_kernel::entry::log_write(b"hello from ring 3\n");
    for argument in guest_kernel::entry::args() {
        guest_kernel::entry::log_write(argument.as_bytes());
        guest_kernel::entry::log_write(b"\n");
    }
    0
}
