//! Which kernels there are, and which of them this CPU can run.

use std::fmt;

/// A way to compute products, which this CPU can run: other ones can't be had.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kernel(Code);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Code {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Shuffle256,
    #[cfg(target_arch = "x86_64")]
    Gfni256,
    #[cfg(target_arch = "x86_64")]
    Gfni512,
}

impl Kernel {
    /// Runs on any CPU.
    pub const PORTABLE: Self = Self(Code::Portable);

    /// All kernels by name, the fastest first: `None` where this CPU lacks the instructions.
    #[must_use]
    pub fn all() -> Vec<(&'static str, Option<Self>)> {
        let codes = [
            #[cfg(target_arch = "x86_64")]
            Code::Gfni512,
            #[cfg(target_arch = "x86_64")]
            Code::Gfni256,
            #[cfg(target_arch = "x86_64")]
            Code::Shuffle256,
            Code::Portable,
        ];
        codes.map(|code| (code.name(), code.is_supported().then_some(Self(code)))).to_vec()
    }

    /// The fastest one.
    #[must_use]
    pub fn best() -> Self {
        Self::all().into_iter().find_map(|(_, kernel)| kernel).unwrap_or(Self::PORTABLE)
    }

    /// What it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.0.name()
    }

    pub(super) fn code(self) -> Code {
        self.0
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Shuffle256 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Gfni256 => "GFNI, AVX2",
            #[cfg(target_arch = "x86_64")]
            Self::Gfni512 => "GFNI, AVX-512",
        }
    }

    /// Whether this CPU, under this operating system, has what the kernel uses. The library keeps
    /// the answer of CPUID.
    fn is_supported(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Shuffle256 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Gfni256 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("gfni"),
            #[cfg(target_arch = "x86_64")]
            Self::Gfni512 => {
                is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("gfni")
            }
        }
    }
}
