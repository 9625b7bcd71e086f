//! Small files of settings, read with a bound.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// Why a file gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A directory, a pipe, a device.
    #[error("not a regular file")]
    Kind,
    /// Larger than it has any right to be.
    #[error("larger than {0} bytes")]
    Large(u64),
}

/// The file's content, at most `bytes_max` of it.
pub(crate) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ReadError> {
    // before opening: that alone may wait for ever at a pipe
    if !fs::metadata(path)?.is_file() {
        return Err(ReadError::Kind);
    }
    let mut content = Vec::new();
    File::open(path)?
        .take(bytes_max + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        return Err(ReadError::Large(bytes_max));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(ReadError::Large(4))));
        assert!(matches!(read(dir.path(), 5), Err(ReadError::Kind)));
        assert!(matches!(
            read(&dir.path().join("none"), 5),
            Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::NotFound
        ));
    }
}
