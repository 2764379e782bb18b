//! placeholder
use crate::failure::Failure;
use crate::repository::Repository;
pub(crate) fn run(_repository: &Repository) -> Result<(), Failure> {
    Err(Failure::Output { from: "demo", reason: "not there yet".to_owned() })
}
