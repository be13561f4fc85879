# What stays at CPL 0 after the start: the gate through which the body has a routine run here, the
# routines themselves, and the handlers of exceptions and interrupts.

.section .text.cpl0, "ax"
.code64

# int3: runs the routine in RAX, with the arguments and the clobbers of the C ABI.
.global cpl0_gate
cpl0_gate:
    call rax
    iretq

.global cpl0_rdmsr
cpl0_rdmsr:                     # (msr) -> value
    mov ecx, edi
    rdmsr
    shl rdx, 32
    or rax, rdx
    ret

.global cpl0_wrmsr
cpl0_wrmsr:                     # (msr, value)
    mov ecx, edi
    mov eax, esi
    mov rdx, rsi
    shr rdx, 32
    wrmsr
    ret

.global cpl0_cpuid
cpl0_cpuid:                     # (leaf, subleaf, &mut [eax, ebx, ecx, edx])
    mov r8, rdx
    mov r9, rbx
    mov eax, edi
    mov ecx, esi
    cpuid
    mov [r8], eax
    mov [r8 + 4], ebx
    mov [r8 + 8], ecx
    mov [r8 + 12], edx
    mov rbx, r9
    ret

.global cpl0_set_interrupts
cpl0_set_interrupts:            # (0 or 0x200): the IF flag with which CPL 3 goes on
    and dword ptr [rsp + 24], ~0x200
    or [rsp + 24], edi
    ret

.global cpl0_wait_for_interrupt
cpl0_wait_for_interrupt:        # (&count, seen): interrupts are off here, so none slips in before hlt
    cmp [rdi], rsi
    jne 1f
    sti
    hlt
    cli
1:  ret

.global cpl0_halt
cpl0_halt:                      # never returns
    cli
    hlt
    jmp cpl0_halt

.global cpl0_loop
cpl0_loop:                      # (iterations): two instructions each
    dec rdi
    jnz cpl0_loop
    ret

# With no IDT an exception ends in a triple fault. Where CPL 0 is emulated, int3 often cannot be:
# then the monitor sees an error of the emulation instead.
.global cpl0_crash
cpl0_crash:
    lidt [no_idt]
    int3
    ud2

.global cpl0_triple_fault
cpl0_triple_fault:
    lidt [no_idt]
    ud2

# Exceptions: vector N enters at cpl0_exceptions + 16 * N. Those without an error code push a 0.
.balign 16
.global cpl0_exceptions
cpl0_exceptions:
.set vector, 0
.rept 32
    .balign 16
    .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
.endr

# Goes on at CPL 3 with report_exception(vector, error code, RIP, CR2), on a stack of its own.
exception:
    pop rdi
    pop rsi
    pop rdx
    mov rcx, cr2
    push USER_DS
    mov eax, offset exception_stack + 8192 - 8
    push rax
    push USER_RFLAGS
    push USER_CS
    mov eax, offset report_exception
    push rax
    iretq

# Interrupts are only counted, in INTERRUPTS[vector - 0x20], and acknowledged.
.macro interrupt_handler name, index
.global \name
\name:
    inc qword ptr [INTERRUPTS + 8 * \index]
    jmp end_of_interrupt
.endm
interrupt_handler cpl0_timer_interrupt, 0
interrupt_handler cpl0_uart_interrupt, 1
interrupt_handler cpl0_virtio_interrupt, 2

end_of_interrupt:
    push rax
    cmp dword ptr [X2APIC], 0
    jne 1f
    mov eax, 0xfee000b0
    mov dword ptr [rax], 0
    pop rax
    iretq
1:  push rcx
    push rdx
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq

.global cpl0_spurious_interrupt
cpl0_spurious_interrupt:
    iretq

.section .rodata.no_idt, "a"
no_idt:
    .word 0
    .quad 0

.section .bss.exception_stack, "aw", @nobits
    .balign 16
exception_stack:
    .skip 8192
