//! Twenty-four devices at once, more than there are interrupts, with disks of odd sizes among them.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sparkler::VmBuilder;
use sparkler::virtio::block::Disk;
use sparkler::virtio::rng::Rng;

use crate::guest::script;

const DEVICES: usize = 24;
/// Besides these there are Debian's disk, the job's disk, and the entropy device.
const DISKS: usize = DEVICES - 3;

/// The letter of the disk that only can be read.
const READ_ONLY: char = 'f';

/// All disks at the same time: what they hold, then a mark in the first sector and one in the last.
const SCRIPT: &str = r#"
for disk in /sys/block/vd[b-v]; do
    disk=${disk##*/}
    {
        sum=$(sha256sum </dev/$disk)
        sectors=$(cat /sys/block/$disk/size)
        ro=$(cat /sys/block/$disk/ro)
        written=no
        if printf "first of $disk" | dd of=/dev/$disk conv=notrunc,fsync status=none &&
            printf "last of $disk" |
            dd of=/dev/$disk conv=notrunc,fsync status=none bs=512 seek=$((sectors - 1))
        then
            written=yes
        fi 2>/dev/null
        echo "$disk: $sectors ${sum%% *} ro=$ro written=$written"
    } &
done
wait
cat /sys/class/misc/hw_random/rng_current
head -c 64 /dev/hwrng | wc -c
sed -n 's/^ *\([0-9]*\):.*\(virtio[0-9]*, *virtio[0-9]*\)$/shared: \1 by \2/p' /proc/interrupts
"#;

#[test]
#[ignore = "needs the lab"]
fn twenty_four_devices_of_odd_sizes_share_interrupts_and_stay_apart() {
    let folder = tempfile::tempdir().unwrap();
    let disks: Vec<Sample> = ('b'..).take(DISKS).map(|l| Sample::new(folder.path(), l)).collect();
    let text = script(SCRIPT, |machine| {
        let machine = disks.iter().fold(machine, |machine, disk| disk.attach(machine));
        machine.device(Rng::new().unwrap())
    });
    for disk in &disks {
        assert!(text.contains(&disk.report()), "no {:?} in {text}", disk.report());
        assert!(fs::read(&disk.path).unwrap() == disk.expected(), "vd{}", disk.letter);
    }
    assert!(text.contains("virtio_rng.0"), "{text}");
    assert!(text.lines().any(|line| line.trim() == "64"), "{text}");
    let shared = text.lines().filter(|line| line.starts_with("shared: ")).count();
    assert!(shared >= 3, "{text}");
}

/// A disk whose every sector says whose it is and where.
struct Sample {
    letter: char,
    path: PathBuf,
    content: Vec<u8>,
}

impl Sample {
    fn new(folder: &Path, letter: char) -> Self {
        let number = u32::from(letter) - u32::from('a');
        let size = match letter {
            'b' => 4 << 20,
            // One sector; a number of sectors that fills no page; a last sector that is not full.
            'c' => 512,
            'd' => (1 << 20) + 3 * 512,
            'e' => 1000,
            READ_ONLY => 64 << 10,
            _ => usize::try_from(number * 2560).unwrap(),
        };
        let sectors =
            (0_u32..).flat_map(|sector| format!("vd{letter} {sector:>507} ").into_bytes());
        let path = folder.join(letter.to_string());
        let content: Vec<u8> = sectors.take(size).collect();
        fs::write(&path, &content).unwrap();
        Self { letter, path, content }
    }

    fn attach(&self, machine: VmBuilder) -> VmBuilder {
        let disk = match self.letter {
            READ_ONLY => Disk::open_read_only(&self.path),
            _ => Disk::open(&self.path),
        };
        machine.disk(disk.unwrap())
    }

    /// What the guest must say of it. It sees zeroes behind the end.
    fn report(&self) -> String {
        let mut seen = self.content.clone();
        seen.resize(seen.len().next_multiple_of(512), 0);
        let (read_only, written) = if self.letter == READ_ONLY { (1, "no") } else { (0, "yes") };
        let (sectors, sum) = (seen.len() / 512, sha256(&seen));
        format!("vd{}: {sectors} {sum} ro={read_only} written={written}", self.letter)
    }

    /// What the file must hold in the end. A write to a last sector that was not full fills it.
    fn expected(&self) -> Vec<u8> {
        let mut content = self.content.clone();
        if self.letter != READ_ONLY {
            content.resize(content.len().next_multiple_of(512), 0);
            let last = content.len() - 512;
            let marks = [(0, format!("first of vd{}", self.letter))];
            for (at, mark) in
                marks.into_iter().chain([(last, format!("last of vd{}", self.letter))])
            {
                content[at..at + mark.len()].copy_from_slice(mark.as_bytes());
            }
        }
        content
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut sum = Command::new("sha256sum");
    let mut sum = sum.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    output.split_whitespace().next().unwrap().to_owned()
}
