# The ways in, and the way down to CPL 3. Everything here runs at CPL 0, where a host without
# hardware virtualization emulates each instruction slowly: so it is short and uses only
# plain instructions. See README.md, "How it is made".

.set MARK_PORT, 0xf8
.set KERNEL_DS, 0x18
.set USER_DS, 0x2b              # GDT entry 5, RPL 3
.set USER_CS, 0x33              # GDT entry 6, RPL 3
.set FIRST_TSS, 0x40
.set USER_RFLAGS, 2             # interrupts are off
.set MAX_CPUS, 64

# CPL 3 may use every port by the I/O permission bitmap of its task state, not by IOPL 3, which PVM
# loses at iretq. One bitmap, all zeros, serves all CPUs: at the same distance behind each.
.set TASK_STATE_SIZE, 128
.set IO_BITMAP_DISTANCE, TASK_STATE_SIZE * MAX_CPUS
.set TASK_STATE_LIMIT, IO_BITMAP_DISTANCE + 8192

# How PVH loaders find pvh_entry: XEN_ELFNOTE_PHYS32_ENTRY (18), owner "Xen".
.section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

.section .text.entry, "ax"

# Maps the first 4 MiB, one to one, with two 2 MiB pages that CPL 3 may use as well. Assembles as
# 32-bit and as 64-bit code. The body maps whatever else it wants (paging.rs).
.macro map_first_4_mib
    mov dword ptr [page_map], offset page_directory_pointers + 7      # present, writable, user
    mov dword ptr [page_directory_pointers], offset page_directory + 7
    mov dword ptr [page_directory], 0x87                              # + page size 2 MiB
    mov dword ptr [page_directory + 8], 0x200087
.endm

# Linux 64-bit boot protocol: long mode, paging on (identity map), RSI = boot_params.
.code64
.global entry64
entry64:
    mov al, 1
    out MARK_PORT, al
    cli
    map_first_4_mib
    mov eax, offset page_map
    mov cr3, rax
    xor edi, edi                # body's first argument: 0 = Linux, 1 = PVH; RSI is the second
start_body:
    xor ebp, ebp
    mov ebx, offset body
    # falls through

# Every CPU gets here, in long mode with our page tables, and goes down to CPL 3 for good.
# EBP = index of this CPU, EBX = function to run, which never returns; RDI and RSI = its arguments.
start_cpu:
    lgdt [gdt_pointer]
    lidt [idt_pointer]
    mov eax, KERNEL_DS
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rax, cr0
    and eax, ~0xc               # EM, TS off: CPL 3 may use SSE
    or eax, 2                   # MP
    mov cr0, rax
    mov rax, cr4
    or eax, 0x600               # OSFXSR, OSXMMEXCPT
    mov cr4, rax
    mov edx, ebp
    shl edx, 10
    add edx, offset cpl0_stacks + 1024
    mov esp, edx
    mov ecx, ebp
    shl ecx, 7
    add ecx, offset task_states
    mov [rcx + 4], rdx          # RSP0: the stack for interrupts out of CPL 3
    mov word ptr [rcx + 102], IO_BITMAP_DISTANCE
    mov eax, ebp
    shl eax, 4
    mov [rax + gdt + FIRST_TSS + 2], cx
    shr ecx, 16
    mov [rax + gdt + FIRST_TSS + 4], cl
    add eax, FIRST_TSS
    ltr ax
    mov edx, ebp
    shl edx, 13
    add edx, offset user_stacks + 8192 - 8      # as after a call: RSP = 8 mod 16
    push USER_DS
    push rdx
    push USER_RFLAGS
    push USER_CS
    push rbx
    iretq

# PVH: 32-bit protected mode, flat segments, paging off, EBX = hvm_start_info.
.code32
pvh_entry:
    mov al, 1
    out MARK_PORT, al
    cli
    map_first_4_mib
    mov esi, ebx
    mov eax, cr4
    or eax, 0x20                # PAE
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000          # PG
    mov cr0, eax
    lgdt [gdt_pointer]
    mov edi, 1
    ljmp 0x10, offset start_body

# The other CPUs: smp.rs copies this to a page below 1 MiB and starts them there by INIT and SIPI.
# Real mode, CS = that page.
.section .rodata.trampoline, "a"
.code16
.global trampoline
trampoline:
    cli
    mov ax, cs
    mov ds, ax
    data32 lgdt [TRAMPOLINE_GDT_POINTER]
    mov eax, 0x20               # PAE
    mov cr4, eax
    mov eax, offset page_map
    mov cr3, eax
    mov ecx, 0xc0000080         # EFER
    rdmsr
    or eax, 0x100               # LME
    wrmsr
    mov eax, 0x80000033         # PG, NE, ET, MP, PE
    mov cr0, eax
    .byte 0x66, 0xea            # far jump, 32-bit offset
    .long start_further_cpu
    .word 0x10
    .balign 4
.set TRAMPOLINE_GDT_POINTER, . - trampoline
    .word gdt_end - gdt - 1
    .long gdt
.global trampoline_end
trampoline_end:

.section .text.entry, "ax"
.code64
start_further_cpu:
    mov ebp, 1
    lock xadd dword ptr [CPUS_STARTED], ebp
    cmp ebp, MAX_CPUS
    jae cpl0_halt
    mov edi, ebp
    mov ebx, offset further_cpu
    jmp start_cpu

.section .data.gdt, "aw"
    .balign 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    # 0x08: code, 32-bit
    .quad 0x00af9b000000ffff    # 0x10: code, 64-bit (Linux's __BOOT_CS)
    .quad 0x00cf93000000ffff    # 0x18: data (Linux's __BOOT_DS)
    .quad 0x00cffb000000ffff    # 0x20: code, 32-bit, CPL 3
    .quad 0x00cff3000000ffff    # 0x28: data, CPL 3
    .quad 0x00affb000000ffff    # 0x30: code, 64-bit, CPL 3
    .quad 0
    .rept MAX_CPUS              # 0x40...: a task state for each CPU, its base filled in later
    .quad 0x0000890000000000 + TASK_STATE_LIMIT
    .quad 0
    .endr
gdt_end:

    .balign 8
    .word 0, 0, 0
.global gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .balign 8
    .word 0, 0, 0
idt_pointer:
    .word 256 * 16 - 1
    .quad IDT

.section .bss.tables, "aw", @nobits
    .balign 4096
.global page_map
page_map:
    .skip 4096
page_directory_pointers:
    .skip 4096
page_directory:
    .skip 4096
cpl0_stacks:
    .skip 1024 * MAX_CPUS
    .skip 65536 - 8192          # of the first CPU's stack, which grows down to here
user_stacks:
    .skip 8192 * MAX_CPUS
task_states:
    .skip TASK_STATE_SIZE * MAX_CPUS
    .skip IO_BITMAP_DISTANCE + 8192 + 1
