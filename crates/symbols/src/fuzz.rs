//! One entry point that reads everything in a file, for fuzzing.

use crate::elf::Elf;
use crate::map::Contents;
use crate::module::Files;

/// Reads `bytes` as an ELF file the way a module of the target is read, and
/// looks up addresses all over it. For fuzz targets: whatever the bytes are,
/// it returns; it opens no file.
pub fn lookup_everything(bytes: &[u8]) {
    let Ok(elf) = Elf::parse(Contents::from_vec(bytes.to_vec())) else {
        return;
    };
    let mut files = Files::from_single(elf);
    let mut at = vec![0, 1, u64::MAX - 1, u64::MAX];
    // Numbers in the file that could be addresses of it.
    let step = (bytes.len() / 4096).max(1);
    at.extend(
        (0..bytes.len())
            .step_by(step)
            .filter_map(|i| crate::bytes::u64_at(bytes, i)),
    );
    at.extend((0..64).map(|i| 0x1000 + i * 97));
    for at in at {
        files.lookup(at, &mut |_| Vec::new());
    }
}
