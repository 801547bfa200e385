/*
 * A boot loader for QEMU alone: `qemu -kernel loader -initrd KERNEL,INITFS[,DISK] -append 'NAME=VALUE;...'`.
 *
 * QEMU puts the three files into memory. The loader maps the kernel at its link address and passes it all addresses. It
 * does not move the DISK: the live disk driver finds it by DISK_LIVE_ADDR. The loader prints the addresses of the disk, so
 * that it can be saved from the memory of the machine.
 */

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096
#define PRESENT_WRITABLE 0x03
#define HUGE 0x80
#define IDENTITY_GIB 8
#define KERNEL_TABLES 32

/* The arguments that the kernel's entry point reads, `KernelArgs` of src/startup/mod.rs. */
struct arguments {
    uint64_t kernel_base, kernel_size, stack_base, stack_size, env_base, env_size;
    uint64_t rsdp_base, rsdp_size, areas_base, areas_size, bootstrap_base, bootstrap_size;
};

enum { AREA_FREE = 1, AREA_RESERVED = 3 };

struct area {
    uint64_t base, size, kind;
} __attribute__((packed));

struct multiboot {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr;
};

struct module {
    uint32_t start, end, string, reserved;
};

struct region {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
} __attribute__((packed));

typedef uint64_t table[512] __attribute__((aligned(PAGE)));

table page_map;
static table low, high, kernel_directory, identity[IDENTITY_GIB], kernel_pages[KERNEL_TABLES];
static uint8_t env[65536] __attribute__((aligned(PAGE)));
static uint32_t env_length;
static struct area areas[64] __attribute__((aligned(PAGE)));
static size_t areas_count;
static struct arguments arguments __attribute__((aligned(PAGE)));

extern uint64_t kernel_entry;
extern char loader_begin[], loader_end[];

/* The compiler calls these two. */
void *memset(void *to, int byte, size_t length)
{
    for (uint8_t *at = to; length--; at++)
        *at = (uint8_t)byte;
    return to;
}

void *memcpy(void *to, const void *from, size_t length)
{
    uint8_t *at = to;
    for (const uint8_t *source = from; length--;)
        *at++ = *source++;
    return to;
}

static void serial(char byte)
{
    __asm__ volatile("outb %0, %1" ::"a"(byte), "Nd"((uint16_t)0x3f8));
}

static void print(const char *text)
{
    while (*text)
        serial(*text++);
}

static void die(const char *text)
{
    print(text);
    for (;;)
        __asm__ volatile("hlt");
}

/* Calls put with each of the 16 digits. */
static void hexadecimal(uint64_t value, void (*put)(char))
{
    for (int shift = 60; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void env_put(char byte)
{
    if (env_length == sizeof env)
        die("loader: the environment is too long\n");
    env[env_length++] = (uint8_t)byte;
}

static void env_set(const char *name, uint64_t value)
{
    while (*name)
        env_put(*name++);
    env_put('=');
    hexadecimal(value, env_put);
    env_put('\n');
}

static uint64_t round_up(uint64_t size)
{
    return (size + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

static void add_area(uint64_t base, uint64_t size, uint64_t kind)
{
    if (areas_count == sizeof areas / sizeof *areas)
        die("loader: too many areas of memory\n");
    areas[areas_count++] = (struct area){base, size, kind};
}

/* Maps all memory at its own addresses and at the kernel's offset, and the kernel at its link address. */
static void map(uint32_t kernel, uint32_t size)
{
    page_map[0] = page_map[256] = (uint32_t)low | PRESENT_WRITABLE;
    for (uint64_t gib = 0; gib < IDENTITY_GIB; gib++) {
        low[gib] = (uint32_t)identity[gib] | PRESENT_WRITABLE;
        for (uint64_t page = 0; page < 512; page++)
            identity[gib][page] = (gib << 30) | (page << 21) | HUGE | PRESENT_WRITABLE;
    }
    if (round_up(size) / PAGE > KERNEL_TABLES * 512)
        die("loader: the kernel is too large\n");
    page_map[511] = (uint32_t)high | PRESENT_WRITABLE;
    high[510] = (uint32_t)kernel_directory | PRESENT_WRITABLE;
    for (uint32_t page = 0; page < round_up(size) / PAGE; page++) {
        kernel_directory[page / 512] = (uint32_t)kernel_pages[page / 512] | PRESENT_WRITABLE;
        kernel_pages[page / 512][page % 512] = (kernel + page * PAGE) | PRESENT_WRITABLE;
    }
}

/* Returns the address of the ACPI table in a range of the BIOS's memory, or 0. */
static uint32_t find_rsdp(uint32_t at, uint32_t end)
{
    static const char signature[8] = "RSD PTR ";
    for (; at < end; at += 16) {
        size_t same = 0;
        while (same < sizeof signature && ((const char *)at)[same] == signature[same])
            same++;
        if (same == sizeof signature)
            return at;
    }
    return 0;
}

static void tell_rsdp(void)
{
    uint32_t extended = (uint32_t) * (volatile uint16_t *)0x40e << 4;
    uint32_t rsdp = find_rsdp(extended, extended + 1024);
    if (!rsdp)
        rsdp = find_rsdp(0xe0000, 0x100000);
    if (!rsdp)
        return;
    int revision = ((uint8_t *)rsdp)[15];
    arguments.rsdp_base = rsdp;
    arguments.rsdp_size = revision == 0 ? 20 : *(uint32_t *)(rsdp + 20);
    env_set("RSDP_ADDR", arguments.rsdp_base);
    env_set("RSDP_SIZE", arguments.rsdp_size);
}

/* Returns the text after the loader's own name in -append. A semicolon ends a line. */
static void tell_environment(const char *line)
{
    while (*line && *line != ' ')
        line++;
    while (*line == ' ')
        line++;
    for (; *line; line++)
        env_put(*line == ';' ? '\n' : *line);
    env_put('\n');
}

struct arguments *load(uint32_t magic, const struct multiboot *boot)
{
    if (magic != 0x2BADB002 || boot->mods_count < 2)
        die("loader: wants -initrd KERNEL,INITFS[,DISK]\n");
    const struct module *kernel = (struct module *)boot->mods_addr, *initfs = kernel + 1, *disk = kernel + 2;
    map(kernel->start, kernel->end - kernel->start);
    kernel_entry = ((uint64_t *)kernel->start)[3];

    for (uint32_t at = boot->mmap_addr; at < boot->mmap_addr + boot->mmap_length;) {
        const struct region *region = (struct region *)at;
        add_area(region->base, region->length, region->type == 1 ? AREA_FREE : AREA_RESERVED);
        at += region->size + sizeof region->size;
    }
    add_area((uint32_t)loader_begin, (uint32_t)(loader_end - loader_begin), AREA_RESERVED);
    tell_rsdp();
    if (boot->mods_count > 2) {
        uint32_t size = disk->end - disk->start;
        add_area(disk->start, round_up(size), AREA_RESERVED);
        env_set("DISK_LIVE_ADDR", disk->start);
        env_set("DISK_LIVE_SIZE", size);
        print("loader: disk ");
        hexadecimal(disk->start, serial);
        print(" ");
        hexadecimal(size, serial);
        print("\n");
    }
    if (boot->flags & 4)
        tell_environment((const char *)boot->cmdline);

    arguments.kernel_base = kernel->start;
    arguments.kernel_size = round_up(kernel->end - kernel->start);
    arguments.env_base = (uint32_t)env;
    arguments.env_size = env_length;
    arguments.areas_base = (uint32_t)areas;
    arguments.areas_size = areas_count * sizeof *areas;
    arguments.bootstrap_base = initfs->start;
    arguments.bootstrap_size = round_up(initfs->end - initfs->start);
    return &arguments;
}
