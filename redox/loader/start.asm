; QEMU starts the loader here (`-kernel`, a Multiboot image): 32 bits, no paging. Calls load(), turns on the processor
; features that the kernel expects, and jumps to the kernel in 64-bit mode. The first argument is the address of the
; kernel's arguments.

bits 32

section .multiboot align=4
    dd 0x1BADB002                       ; magic
    dd 3                                ; modules aligned to pages, memory map
    dd -(0x1BADB002 + 3)                ; checksum

section .text
global _start
extern load
extern page_map

_start:
    cli
    mov esp, stack_top
    push eax                            ; keeps the stack aligned for the call
    push ebx                            ; the Multiboot information
    push eax                            ; the magic number
    call load
    mov esi, eax                        ; the kernel's arguments

    mov eax, cr4
    or eax, 1 << 9 | 1 << 7 | 1 << 5 | 1 << 4   ; OSFXSR, PGE, PAE, PSE
    mov cr4, eax
    mov ecx, 0xC0000080                 ; EFER
    rdmsr
    or eax, 1 << 11 | 1 << 8            ; NXE, LME
    wrmsr
    mov eax, page_map
    mov cr3, eax
    mov eax, cr0
    and eax, ~(1 << 2)                  ; EM off
    or eax, 1 << 31 | 1 << 16 | 1 << 1 | 1      ; PG, WP, MP, PE
    mov cr0, eax
    lgdt [gdt_pointer]
    jmp 0x08:long_mode

bits 64
long_mode:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov edi, esi
    mov rsp, stack_top
    jmp qword [kernel_entry]

section .data
align 8
gdt:
    dq 0
    dq 0x00AF9A000000FFFF               ; code
    dq 0x00CF92000000FFFF               ; data
gdt_pointer:
    dw 23
    dq gdt
global kernel_entry
kernel_entry:
    dq 0

section .bss
align 16
    resb 65536
stack_top:
