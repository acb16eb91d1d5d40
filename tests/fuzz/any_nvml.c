/*
 * A library in the place of libnvidia-ml.so.1 that answers whatever the bytes say which lie beside it in a file (".bytes" after this
 * library's name): every value, length and error code comes from them, and text need not end. What it writes stays inside the
 * buffers that it was given: a driver that writes past them has the machine anyway.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef int nvml_return;
typedef void *device;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;

static unsigned char bytes[4096];
static long length, at;

static void load(void) {
    static char path[4096];
    Dl_info self;
    if (!*path && dladdr((void *)load, &self) && self.dli_fname)
        snprintf(path, sizeof path, "%s.bytes", self.dli_fname);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    length = file < 0 ? 0 : read(file, bytes, sizeof bytes);
    if (length < 0)
        length = 0;
    at = 0;
    if (file >= 0)
        close(file);
}

static unsigned byte(void) { return at < length ? bytes[at++] : 0; }

static void fill(void *into, size_t size) {
    unsigned char *to = into;
    for (size_t nth = 0; nth < size; nth++)
        to[nth] = (unsigned char)byte();
}

/* Mostly well, so that something is read; a small number mostly, so that lists end. */
static nvml_return code(void) {
    unsigned first = byte();
    return first < 192 ? 0 : (int)(first - 192);
}

static unsigned count_of(void) {
    unsigned first = byte(), wide = 0;
    if (first < 240)
        return first % 6;
    fill(&wide, sizeof wide);
    return wide;
}

static nvml_return text(char *into, unsigned size) {
    unsigned kind = byte();
    nvml_return said = code();
    if (kind < 128) /* something that is a name, so that more than names is read */
        snprintf(into, size, "GPU-%u", kind % 4);
    else if (kind < 192)
        memset(into, 'x', size); /* it does not end */
    else
        fill(into, size < 40 ? size : 40);
    return said;
}

static nvml_return list(unsigned *count, void *into, size_t one) {
    unsigned held = count_of(), room = *count;
    nvml_return said = code();
    if (into)
        fill(into, one * (held < room ? held : room));
    *count = held;
    return !into && held && said == 0 ? 7 : said;
}

nvml_return nvmlInit_v2(void) {
    load();
    return code();
}

nvml_return nvmlShutdown(void) { return code(); }

/* The wrapper asks for it when it opens the library, and believes that it ends. */
nvml_return nvmlSystemGetDriverVersion(char *version, unsigned size) {
    nvml_return said = text(version, size);
    version[size - 1] = 0;
    return said;
}

nvml_return nvmlDeviceGetCount_v2(unsigned *count) {
    load();
    *count = count_of();
    return code();
}

nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned index, device *d) {
    *d = (device)(size_t)(index + 1);
    return code();
}

nvml_return nvmlDeviceGetUUID(device d, char *uuid, unsigned size) { return (void)d, text(uuid, size); }
nvml_return nvmlDeviceGetName(device d, char *name, unsigned size) { return (void)d, text(name, size); }

nvml_return nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *memory) {
    (void)d;
    fill(&memory->total, 4 * sizeof memory->total);
    return code();
}

nvml_return nvmlDeviceGetUtilizationRates(device d, unsigned answer[2]) {
    (void)d;
    fill(answer, 2 * sizeof *answer);
    return code();
}

nvml_return nvmlDeviceGetSamples(device d, int type, unsigned long long since, int *value_type, unsigned *count, void *into) {
    (void)d, (void)type, (void)since;
    *value_type = (int)count_of();
    return list(count, into, 16);
}

nvml_return nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *count, void *into) { return (void)d, list(count, into, 24); }
nvml_return nvmlDeviceGetComputeRunningProcesses_v2(device d, unsigned *count, void *into) { return (void)d, list(count, into, 24); }
nvml_return nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned *count, void *into) { return (void)d, list(count, into, 24); }
nvml_return nvmlDeviceGetMPSComputeRunningProcesses_v3(device d, unsigned *count, void *into) { return (void)d, list(count, into, 24); }

nvml_return nvmlDeviceGetProcessUtilization(device d, void *into, unsigned *count, unsigned long long since) {
    (void)d, (void)since;
    return list(count, into, 32);
}

nvml_return nvmlDeviceGetMigMode(device d, unsigned *current, unsigned *pending) {
    (void)d;
    *current = byte() > 200;
    *pending = byte();
    return code();
}

nvml_return nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *count) {
    (void)d;
    *count = count_of();
    return code();
}

nvml_return nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned slot, device *part) {
    *part = (device)((size_t)d * 16 + slot);
    return code();
}

nvml_return nvmlDeviceGetAttributes_v2(device d, void *attributes) {
    (void)d;
    fill(attributes, 40);
    return code();
}
