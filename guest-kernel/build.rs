//! Links the guest images: static, at the address of guest RAM, without a C runtime.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        // `abi::layout::RAM_BASE`
        "-Wl,--image-base=0x200000",
        // One page between segments of different protection, no more.
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,norelro",
        "-Wl,--build-id=none",
        "-Wl,--no-dynamic-linker",
        "-Wl,-e,_start",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
