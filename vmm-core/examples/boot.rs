//! Boots a kernel to its end: `cargo run --release -p sparkler --example boot -- KERNEL INITRD`.

use sparkler::{Console, Initrd, Kernel, MemorySize, Vm};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel = arguments.next().unwrap_or("vmlinuz".to_owned());
    let initrd = arguments.next().unwrap_or("initrd.cpio".to_owned());
    let vm = Vm::builder()
        .vcpus(2)
        .memory(MemorySize::mib(256))
        .kernel(Kernel::file(kernel)?)
        .initrd(Initrd::file(initrd)?)
        .cmdline("console=ttyS0 quiet panic=-1")
        .console(Console::stdio()?)
        .build()?;
    println!("{}", vm.start()?.wait()?);
    Ok(())
}
