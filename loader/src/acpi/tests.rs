use super::*;
use vm_memory::GuestMemoryMmap;

const CONFIG: AcpiConfig<'_> = AcpiConfig {
    apic_ids: &[0, 1, 4, 300],
    sleep_control: 0x600,
    sleep_status: 0x601,
    s5_sleep_type: 5,
    reset: 0x602,
    reset_value: 1,
    uart: Some(Uart { port: 0x3f8, gsi: 4 }),
    power_button: Some(3),
    virtio_mmio: &[
        VirtioMmio { address: 0xd000_0000, size: 0x1000, gsi: 5 },
        VirtioMmio { address: 0xd000_1000, size: 0x1000, gsi: 6 },
    ],
};

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
}

fn read(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// Reads a table as long as its header says, and checks signature, checksum and alignment.
fn table(memory: &GuestMemoryMmap, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let len = u32_at(&read(memory, address + 4, 4), 0);
    let table = read(memory, address, usize::try_from(len).unwrap());
    assert_eq!(&table[..4], signature);
    assert_eq!(sum(&table), 0, "{signature:?}");
    assert_eq!(address % 16, 0);
    assert!(address >= 0xe_0000 && address + u64::from(len) <= 0x10_0000);
    table
}

/// FADT, MADT and DSDT, found as a guest finds them.
fn tables(config: &AcpiConfig<'_>) -> [Vec<u8>; 3] {
    let memory = memory();
    let rsdp_address = write(&memory, config).unwrap();
    assert_eq!(rsdp_address, ACPI_TABLES);
    let rsdp = read(&memory, rsdp_address.0, 36);
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(&memory, u64_at(&rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(&memory, u64_at(&xsdt, 36), b"FACP");
    let madt = table(&memory, u64_at(&xsdt, 44), b"APIC");
    let dsdt = table(&memory, u64_at(&fadt, 140), b"DSDT");
    [fadt, madt, dsdt]
}

#[test]
fn fadt_describes_a_hardware_reduced_platform() {
    let [fadt, ..] = tables(&CONFIG);
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = u32_at(&fadt, 112);
    for bit in [0, 4, 5, 10, 20] {
        assert_ne!(flags & 1 << bit, 0, "bit {bit}");
    }
    let boot_arch = u16::from_le_bytes([fadt[109], fadt[110]]);
    assert_eq!(boot_arch, 1 << 2 | 1 << 5, "no legacy devices, no 8042, no VGA, no CMOS clock");
    let port = |offset: usize| {
        assert_eq!(fadt[offset..offset + 4], [1, 8, 0, 1], "a byte in I/O space");
        u64_at(&fadt, offset + 4)
    };
    assert_eq!((port(116), fadt[128]), (0x602, 1));
    assert_eq!((port(244), port(256)), (0x600, 0x601));
}

#[test]
fn madt_lists_processors_by_the_size_of_their_ids() {
    let [_, madt, _] = tables(&CONFIG);
    assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 0));
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let [_, len, ..] = rest {
        let (entry, tail) = rest.split_at(usize::from(*len));
        entries.push(entry.to_vec());
        rest = tail;
    }
    assert_eq!(
        entries,
        [
            vec![0, 8, 0, 0, 1, 0, 0, 0],
            vec![0, 8, 1, 1, 1, 0, 0, 0],
            vec![0, 8, 2, 4, 1, 0, 0, 0],
            vec![9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0],
            vec![1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            vec![4, 6, 0xff, 0, 0, 1],
            vec![10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
        ]
    );
}

#[test]
fn dsdt_has_soft_off_the_uart_the_power_button_and_virtio_devices() {
    let [.., dsdt] = tables(&CONFIG);
    let count = |part: &[u8]| dsdt.windows(part.len()).filter(|window| *window == part).count();
    assert_eq!(count(b"\x08_S5_\x12\x07\x04\x0a\x05\x00\x00\x00"), 1);
    assert_eq!(count(b"COM1"), 1);
    // I/O 0x3f8 with eight ports; interrupt 4: consumer, edge, high, exclusive.
    assert_eq!(count(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 3, 1, 4, 0, 0, 0]), 1);
    // PNP0C0C as an EISA id; then a method of one argument, serialized, that tells the button of a press.
    assert_eq!(count(b"PWRB\x08_HID\x0c\x41\xd0\x0c\x0c"), 1);
    assert_eq!(count(&[0x89, 6, 0, 3, 1, 3, 0, 0, 0]), 1);
    assert_eq!(count(b"\x14\x0d_EVT\x09\x86PWRB\x0a\x80"), 1);
    assert_eq!(count(b"LNRO0005"), 2);
    assert_eq!((count(b"V000"), count(b"V001")), (1, 1));
    // 32-bit memory, writable; interrupt 6: consumer, edge, high, shared.
    let resources = [0x86, 9, 0, 1, 0, 0x10, 0, 0xd0, 0, 0x10, 0, 0, 0x89, 6, 0, 11, 1, 6, 0, 0, 0];
    assert_eq!(count(&resources), 1);

    let [.., empty] =
        tables(&AcpiConfig { uart: None, power_button: None, virtio_mmio: &[], ..CONFIG });
    assert_eq!(empty.len(), 36 + 13);
}

#[test]
fn refuses_what_the_tables_cannot_tell() {
    fn write(config: AcpiConfig<'_>) -> AcpiError {
        super::write(&memory(), &config).unwrap_err()
    }
    let error = write(AcpiConfig { s5_sleep_type: 8, ..CONFIG });
    assert!(matches!(error, AcpiError::SleepType { value: 8 }), "{error}");
    for address in [0xffff_f001, 1 << 32] {
        let device = VirtioMmio { address, size: 0x1000, gsi: 5 };
        let error = write(AcpiConfig { virtio_mmio: &[device], ..CONFIG });
        assert!(matches!(error, AcpiError::DeviceAddress { .. }), "{error}");
    }
    let device = VirtioMmio { address: 0xd000_0000, size: 0x1000, gsi: 5 };
    let error = write(AcpiConfig { virtio_mmio: &[device; 4097], ..CONFIG });
    assert!(matches!(error, AcpiError::TooManyDevices { count: 4097, limit: 4096 }), "{error}");
    let error = write(AcpiConfig { virtio_mmio: &[device; 4096], ..CONFIG });
    assert!(matches!(error, AcpiError::TooLarge { limit: 0x2_0000, .. }), "{error}");
    let small = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let error = super::write(&small, &CONFIG).unwrap_err();
    assert!(matches!(error, AcpiError::Memory { .. }), "{error}");
}

#[test]
fn a_thousand_devices_fit() {
    let device = VirtioMmio { address: 0xd000_0000, size: 0x1000, gsi: 5 };
    let ids: Vec<u32> = (0..1024).collect();
    tables(&AcpiConfig { apic_ids: &ids, virtio_mmio: &[device; 1000], ..CONFIG });
}
