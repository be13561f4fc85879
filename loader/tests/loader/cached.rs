//! Unpacked kernels that are kept in a folder.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sparkler_loader::{BzImageError, CacheError, Kernel, LoadError};
use tempfile::TempDir;

use crate::mapped::{WHOLE, check, elf, lz4_bzimage, lz4_packed};
use crate::support::{BzImage, DONE, IGNORED, with_small_files};

/// A folder for us alone, whatever the umask is.
fn folder() -> TempDir {
    private(tempfile::tempdir().unwrap())
}

fn private(folder: TempDir) -> TempDir {
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    folder
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The only file in the folder.
fn entry(folder: &Path) -> PathBuf {
    let [entry] = entries(folder).try_into().unwrap();
    entry
}

fn cached(folder: &Path) -> Kernel {
    Kernel::bytes(lz4_bzimage(&elf())).cached(folder).unwrap().mapped()
}

#[test]
fn a_bzimage_is_unpacked_once_and_can_be_mapped_from_its_file() {
    let folder = folder();
    check(&Kernel::bytes(lz4_bzimage(&elf())).cached(folder.path()).unwrap(), true, &[]);
    check(&cached(folder.path()), true, &WHOLE);
    let first = entry(folder.path());
    assert_eq!(fs::read(&first).unwrap(), elf().build());
    assert_eq!(fs::metadata(&first).unwrap().mode() & 0o777, 0o444);
    let inode = fs::metadata(&first).unwrap().ino();
    check(&cached(folder.path()), true, &WHOLE);
    assert_eq!(fs::metadata(entry(folder.path())).unwrap().ino(), inode, "nothing was written");
}

#[test]
fn another_content_is_another_kernel() {
    let folder = folder();
    cached(folder.path());
    let mut other = elf();
    other.segments[0].data[5] ^= 1;
    Kernel::bytes(lz4_bzimage(&other)).cached(folder.path()).unwrap();
    assert_eq!(entries(folder.path()).len(), 2);
}

#[test]
fn a_file_that_cannot_be_the_kernel_is_replaced() {
    let folder = folder();
    cached(folder.path());
    let path = entry(folder.path());
    let size = elf().build().len();
    let whole = elf().build();
    let writable = Permissions::from_mode(0o622);
    for (content, permissions) in [
        (whole[..size - 1].to_vec(), None),
        (vec![0; size], None),
        (Vec::new(), None),
        (whole.clone(), Some(writable)),
    ] {
        fs::remove_file(&path).unwrap();
        fs::write(&path, content).unwrap();
        permissions.into_iter().for_each(|it| fs::set_permissions(&path, it).unwrap());
        check(&cached(folder.path()), true, &WHOLE);
        assert_eq!(fs::read(entry(folder.path())).unwrap(), whole);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
    }
    // Nor is a link followed, wherever it leads.
    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    check(&cached(folder.path()), true, &WHOLE);
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
}

#[test]
fn a_folder_that_others_write_to_is_refused() {
    let folder = folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    let refused = Kernel::bytes(lz4_bzimage(&elf())).cached(folder.path()).unwrap_err();
    assert!(matches!(refused, LoadError::Cache { source: CacheError::NotPrivate, .. }));
    assert_eq!(entries(folder.path()).len(), 0);
    let missing = folder.path().join("missing");
    let refused = Kernel::bytes(lz4_bzimage(&elf())).cached(&missing).unwrap_err();
    assert!(matches!(refused, LoadError::Cache { source: CacheError::Io { .. }, .. }));
}

#[test]
fn a_broken_image_leaves_nothing_behind() {
    let folder = folder();
    let mut image = lz4_bzimage(&elf());
    let size = u32::try_from(elf().build().len()).unwrap().to_le_bytes();
    let stated = image.windows(4).rposition(|bytes| bytes == size).unwrap();
    image[stated..stated + 4].copy_from_slice(&999_u32.to_le_bytes());
    let refused = Kernel::bytes(image).cached(folder.path()).unwrap_err();
    assert!(matches!(refused, LoadError::BzImage { .. }), "{refused:?}");
    Kernel::bytes(BzImage::new(vec![0; 100]).build()).cached(folder.path()).unwrap_err();
    // It unpacks, but to an ELF file of a 32-bit kernel.
    let mut narrow = elf().build();
    narrow[4] = 1;
    let refused = Kernel::bytes(lz4_packed(&narrow)).cached(folder.path()).unwrap_err();
    let is_said = matches!(refused, LoadError::BzImage { source: BzImageError::Elf(_), .. });
    assert!(is_said, "{refused:?}");
    assert_eq!(entries(folder.path()).len(), 0);
}

#[test]
fn a_process_that_is_killed_meanwhile_leaves_nothing_behind() {
    let name = "cached::a_process_that_is_killed_meanwhile_leaves_nothing_behind";
    // Not every file system can have files without names; the one in memory can.
    let folder = private(tempfile::tempdir_in("/dev/shm").unwrap());
    let status = with_small_files(name, ":", folder.path(), |folder| drop(cached(folder)));
    assert_eq!(status.signal(), Some(libc::SIGXFSZ), "killed in the middle: {status}");
    assert_eq!(entries(folder.path()).len(), 0);
}

#[test]
fn a_folder_without_room_is_told_from_a_broken_image() {
    let name = "cached::a_folder_without_room_is_told_from_a_broken_image";
    let folder = folder();
    let status = with_small_files(name, IGNORED, folder.path(), |folder| {
        let full = Kernel::bytes(lz4_bzimage(&elf())).cached(folder).unwrap_err();
        let LoadError::Cache { source: CacheError::Io { what, source }, .. } = full else {
            panic!("{full:?}")
        };
        assert_eq!(what, "write the unpacked kernel");
        assert_eq!(source.raw_os_error(), Some(libc::EFBIG));
    });
    assert_eq!(status.code(), Some(DONE));
    assert_eq!(entries(folder.path()).len(), 0);
}

#[test]
fn an_elf_kernel_stays_as_it_is() {
    let folder = folder();
    check(&Kernel::bytes(elf().build()).cached(folder.path()).unwrap(), true, &[]);
    assert_eq!(entries(folder.path()).len(), 0);
}

#[test]
fn what_is_kept_is_what_was_hashed_though_the_image_is_changed_meanwhile() {
    let folder = folder();
    let path = folder.path().join("image");
    let images = [11, 13].map(|bits| {
        let mut elf = elf();
        elf.segments[0].data[5] ^= bits;
        (lz4_bzimage(&elf), elf.build())
    });
    assert_eq!(images[0].0.len(), images[1].0.len());
    fs::write(&path, &images[0].0).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            for (image, _) in images.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(image, 0).unwrap();
            }
        });
        let cache = folder.path().join("cache");
        fs::create_dir(&cache).unwrap();
        fs::set_permissions(&cache, Permissions::from_mode(0o755)).unwrap();
        for _ in 0..200 {
            // It may be a mixture of both, or change meanwhile.
            let _ = Kernel::file(&path).unwrap().cached(&cache);
        }
        done.store(true, Ordering::Relaxed);
        // Whatever is kept for either image is that image's kernel.
        for (image, kernel) in &images {
            let unpacked = Kernel::bytes(image.clone()).cached(&cache).unwrap();
            drop(unpacked);
            let kept = entries(&cache).into_iter().map(|entry| fs::read(entry).unwrap());
            assert!(kept.filter(|kept| kept == kernel).count() == 1);
        }
    });
}
