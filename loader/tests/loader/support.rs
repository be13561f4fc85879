//! Builds small kernels, and reads back what the loader made of them.

use std::env;
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};

use sparkler_loader::{BootConfig, Cmdline, Entry, Kernel, LoadError};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const PAGE: u64 = 0x1000;

pub(crate) fn memory(mib: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
}

pub(crate) fn read<T: ByteValued>(memory: &GuestMemoryMmap, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).unwrap()
}

pub(crate) fn bytes(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// Loads without an initrd.
pub(crate) fn load(kernel: &Kernel, memory: &GuestMemoryMmap) -> Result<Entry, LoadError> {
    let cmdline = Cmdline::new("console=ttyS0").unwrap();
    kernel.load(memory, &BootConfig { cmdline: &cmdline, initrd: None, rsdp: None, reserved: &[] })
}

/// An error with all of its causes, as a person would be shown it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// How a process ends that has done its work. Not 0, as one would that has found no test of the name.
pub(crate) const DONE: i32 = 42;

/// SIGXFSZ is ignored, so that writing too much is an error.
pub(crate) const IGNORED: &str = "trap '' XFSZ";

/// Has the test of this name do `work` in a process of its own where no file grows beyond 50 KiB; `signal` is what a
/// shell does about SIGXFSZ before, which kills whoever writes more.
pub(crate) fn with_small_files(
    test: &str,
    signal: &str,
    folder: &Path,
    work: impl FnOnce(&Path),
) -> ExitStatus {
    const FOLDER: &str = "SPARKLER_TEST_FOLDER";
    if let Some(folder) = env::var_os(FOLDER) {
        work(Path::new(&folder));
        process::exit(DONE);
    }
    let script = format!("{signal}; ulimit -c 0; ulimit -f 100; exec \"$@\"");
    let mut again = Command::new("sh");
    again.args(["-c", &script, "sh"]).arg(env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]).env(FOLDER, folder);
    // A pipe: the limit would count for a file that all tests write to as well.
    let output = again.stdin(Stdio::null()).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    output.status
}

#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) data: Vec<u8>,
    pub(crate) memory_size: u64,
}

/// An ELF file: headers, then segments, then a PVH note if there is one.
#[derive(Clone)]
pub(crate) struct Elf {
    pub(crate) entry: u64,
    pub(crate) machine: u16,
    pub(crate) kind: u16,
    pub(crate) segments: Vec<Segment>,
    pub(crate) pvh_entry: Option<u32>,
}

impl Default for Elf {
    /// Text at 16 MiB, and data with a zero-filled part at 17 MiB.
    fn default() -> Self {
        let text = (0..5000u32).map(|i| (i * 7 % 251) as u8).collect();
        Self {
            entry: 16 * MIB + 0x10,
            machine: 62,
            kind: 2,
            segments: vec![
                Segment { address: 16 * MIB, data: text, memory_size: 5000 },
                Segment { address: 17 * MIB, data: vec![0xda; 100], memory_size: 3 * PAGE },
            ],
            pvh_entry: None,
        }
    }
}

impl Elf {
    pub(crate) fn build(&self) -> Vec<u8> {
        let headers = self.segments.len() + usize::from(self.pvh_entry.is_some());
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(self.kind.to_le_bytes());
        file.extend(self.machine.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for field in [self.entry, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for field in [64, 56, u16::try_from(headers).unwrap(), 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let mut contents = Vec::new();
        let start = 64 + 56 * headers as u64;
        for segment in &self.segments {
            let offset = start + contents.len() as u64;
            let size = segment.data.len() as u64;
            program_header(&mut file, 1, offset, segment.address, size, segment.memory_size);
            contents.extend(&segment.data);
        }
        if let Some(entry) = self.pvh_entry {
            let offset = start + contents.len() as u64;
            program_header(&mut file, 4, offset, 0, 20, 20);
            for field in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry] {
                contents.extend(field.to_le_bytes());
            }
        }
        file.extend(contents);
        file
    }
}

fn program_header(file: &mut Vec<u8>, kind: u32, offset: u64, address: u64, size: u64, mem: u64) {
    file.extend(kind.to_le_bytes());
    file.extend(7u32.to_le_bytes());
    for field in [offset, address, address, size, mem, PAGE] {
        file.extend(field.to_le_bytes());
    }
}

/// A bzImage of boot protocol 2.15 with one setup sector.
#[derive(Clone)]
pub(crate) struct BzImage {
    pub(crate) payload: Vec<u8>,
    pub(crate) version: u16,
    pub(crate) cmdline_size: u32,
    pub(crate) initrd_addr_max: u32,
    pub(crate) pref_address: u64,
    pub(crate) init_size: u32,
}

impl BzImage {
    pub(crate) fn new(payload: Vec<u8>) -> Self {
        Self {
            payload,
            version: 0x20f,
            cmdline_size: 2047,
            initrd_addr_max: 0x7fff_ffff,
            pref_address: 16 * MIB,
            init_size: 2 * 1024 * 1024,
        }
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = vec![0; 1024];
        let mut put = |offset: usize, bytes: &[u8]| {
            file[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(0x202, b"HdrS");
        put(0x206, &self.version.to_le_bytes());
        put(0x210, &[0x11]);
        put(0x211, &[0x83]);
        put(0x22c, &self.initrd_addr_max.to_le_bytes());
        put(0x230, &0x20_0000u32.to_le_bytes());
        put(0x238, &self.cmdline_size.to_le_bytes());
        put(0x248, &0x10u32.to_le_bytes());
        put(0x24c, &u32::try_from(self.payload.len()).unwrap().to_le_bytes());
        put(0x250, &0xdead_beef_u64.to_le_bytes());
        put(0x258, &self.pref_address.to_le_bytes());
        put(0x260, &self.init_size.to_le_bytes());
        file.extend([0xcc; 0x10]);
        file.extend(&self.payload);
        // The rest of the protected-mode part.
        file.extend([0xcc; 100]);
        file
    }
}
