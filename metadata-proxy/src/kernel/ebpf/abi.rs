//! Which version of the kernel/user contract an object of kernel programs was built with.

use metadata_proxy_common::{ABI_VERSION, names};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::kernel::KernelError;

/// Refuses an object of another version than this program's.
///
/// # Errors
/// [`KernelError::Load`] saying both versions.
pub(super) fn check(programs: &[u8]) -> Result<(), KernelError> {
    match version_of(programs) {
        Some(ABI_VERSION) => Ok(()),
        Some(other) => Err(KernelError::Load(format!(
            "they were built with version {other} of the contract in metadata-proxy-common, this \
             program with version {ABI_VERSION}: build both anew"
        ))),
        None => Err(KernelError::Load(format!(
            "the object has no global {}, so its version is unknown: build it anew",
            names::ABI
        ))),
    }
}

/// Reads the global that holds the version; `None` if there is none.
fn version_of(programs: &[u8]) -> Option<u32> {
    let file = object::File::parse(programs).ok()?;
    let symbol = file.symbol_by_name(names::ABI)?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    let at = section.address() + symbol.address();
    let bytes = section.data_range(at, size_of::<u32>() as u64).ok()??;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::{super::OBJECT, *};

    #[test]
    fn the_embedded_object_is_of_this_version() {
        assert_eq!(version_of(OBJECT), Some(ABI_VERSION));
        assert!(check(OBJECT).is_ok());
    }

    #[test]
    fn an_object_of_another_version_is_refused() {
        let file = object::File::parse(OBJECT).unwrap();
        let symbol = file.symbol_by_name(names::ABI).unwrap();
        let section = file
            .section_by_index(symbol.section_index().unwrap())
            .unwrap();
        let (start, _) = section.file_range().unwrap();
        let at = usize::try_from(start + symbol.address()).unwrap();
        let mut other = OBJECT.to_vec();
        other[at..at + 4].copy_from_slice(&(ABI_VERSION + 1).to_ne_bytes());
        let error = check(&other).unwrap_err().to_string();
        assert!(
            error.contains(&format!("version {}", ABI_VERSION + 1)),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(check(b"not an object").is_err());
    }
}
