//! Opening a volume.

use std::rc::Rc;

use super::options::{OpenError, OpenOptions, Randomness};
use super::state::Engine;

/// Opens or makes the volume.
pub(super) async fn open(
    engine: &Rc<Engine>,
    options: OpenOptions,
    _random: Randomness,
) -> Result<(), OpenError> {
    let Some(create) = &options.create else { return Err(OpenError::NotFound) };
    engine.with(|state| state.size_bytes = create.size_bytes);
    Ok(())
}
