//! What someone outside the project has, with `sparkler` and nothing else in `[dependencies]`: boots the
//! built-in guest and holds it to its word. `../src/test/consumer.rs` builds it against the packages.

use std::error::Error;
use std::time::Duration;

use sparkler::virtio::block::Disk;
use sparkler::vm_memory::GuestAddress;
use sparkler::{BuildError, Console, Kernel, MemorySize, Outcome, Vm};

fn main() -> Result<(), Box<dyn Error>> {
    let (mut output, writer) = std::io::pipe()?;
    let disk = std::env::temp_dir().join(format!("sparkler-consumer-{}", std::process::id()));
    std::fs::write(&disk, [0; 4096])?;
    let vm = Vm::builder()
        .vcpus(2)
        .memory(MemorySize::mib(32))
        .kernel(Kernel::bytes(sparkler::guest::ELF))
        .cmdline("test=vcpus expect_vcpus=2 code=42")
        .console(Console::output(writer))
        .disk(Disk::open(&disk)?)
        .build()?;
    std::fs::remove_file(&disk)?;

    let running = vm.start()?;
    let outcome = running.wait_timeout(Duration::from_secs(60))?;
    drop(running);
    assert_eq!(outcome, Some(Outcome::Exited(42)));
    let said = std::io::read_to_string(&mut output)?;
    assert!(said.contains("vcpu"), "the guest's console says: {said}");

    let refused = Vm::builder().kernel(Kernel::bytes(sparkler::guest::ELF)).vcpus(0).build();
    assert!(matches!(refused, Err(BuildError::Vcpus { requested: 0, .. })));
    // A type of another crate, by the name that ours gives it.
    assert_eq!(GuestAddress(4096).0, 4096);
    println!("the guest ended with exit code 42, as it was asked to");
    Ok(())
}
