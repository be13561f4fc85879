//! bzImage
use thiserror::Error;
/// Why a bzImage cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BzImageError {}
