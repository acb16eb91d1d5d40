/*
 * A stand-in for libnvidia-ml.so.1: the calls that meterd makes, answered from a script.
 *
 * The script is the file that METERD_STUB_NVML names, else the file beside this library with ".script" after its name.
 * It is read again at each call, so that a test or a demonstration can change the world while the agent runs. Write it whole
 * (to another name, then rename). One statement a line; '#' begins a comment; times in microseconds; G is a device's index:
 *
 *   log PATH                     append the name of each called function there; "hangs in NAME" when it begins to hang
 *   error FUNCTION CODE [G]      the function answers this nvmlReturn_t (of this device only)
 *   hang FUNCTION                the function does not return while the script says so
 *   short FUNCTION N             the first N fetching calls answer "insufficient size", as if the list had grown
 *   gpu G UUID TOTAL USED NAME…  a device; memory in bytes
 *   sample G STAMP VALUE         one sample in the ring of utilisation
 *   samples_are double           the ring holds doubles
 *   cycle G PERCENT…             a ring that runs by the real clock: a sample each 200 ms, 71 deep, these values in turn
 *   energy G MILLIJOULES         what nvmlDeviceGetTotalEnergyConsumption answers; without it, "not supported"
 *   rate G PERCENT               what nvmlDeviceGetUtilizationRates answers
 *   process G KIND PID BYTES     KIND is compute, graphics or mps; BYTES may be -1: not available
 *   use G PID STAMP PERCENT      one sample of a process's utilisation
 *   using G PID PERCENT          the same by the real clock: a sample each second, 10 deep
 *   mig G                        the device is in MIG mode; it has 7 slots, and its MIG devices are
 *   part G SLOT UUID TOTAL USED NAME…   NAME "-" answers "not supported"; processes of a part: process G.SLOT …
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { WORDS_MAX = 80, LIST_MAX = 256, PARTS = 16, NO_INSTANCE = -1 };

typedef int nvml_return;
/* A device is its index + 1; a MIG device has its slot + 1 in the higher bits. Never dereferenced. */
typedef void *device;

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } rates;
typedef struct { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned pid; unsigned long long stamp; unsigned sm, mem, enc, dec; } process_use;
typedef union { double as_double; unsigned as_unsigned; unsigned long long wide; } sample_value;
typedef struct { unsigned long long stamp; sample_value value; } sample;
typedef struct { unsigned sms, copy, dec, enc, jpeg, ofa, gpu_slices, compute_slices; unsigned long long memory_mb; } attributes;

typedef struct { char *text; char *at; char *word[WORDS_MAX]; int words; } script;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialised;
static struct { char name[64]; int left, asked; } shorts[8];

/* ---- the script ---- */

static void script_path(char *path, size_t size) {
    const char *named = getenv("METERD_STUB_NVML");
    Dl_info self;
    if (named && *named)
        snprintf(path, size, "%s", named);
    else if (dladdr((void *)script_path, &self) && self.dli_fname)
        snprintf(path, size, "%s.script", self.dli_fname);
    else
        *path = 0;
}

static script script_open(void) {
    script s = {0};
    char path[4096];
    script_path(path, sizeof path);
    FILE *file = fopen(path, "re");
    size_t size = 0;
    if (!file || getdelim(&s.text, &size, 0, file) < 0) {
        free(s.text);
        s.text = strdup("");
    }
    if (file)
        fclose(file);
    s.at = s.text;
    return s;
}

static void script_close(script *s) { free(s->text); }

/* Goes to the next statement of this kind. */
static int next(script *s, const char *kind) {
    while (*s->at) {
        char *line = s->at, *end = strchrnul(line, '\n'), *rest, *word;
        s->at = *end ? end + 1 : end;
        *end = 0;
        s->words = 0;
        if (*line == '#')
            continue;
        for (word = strtok_r(line, " \t", &rest); word && s->words < WORDS_MAX; word = strtok_r(NULL, " \t", &rest))
            s->word[s->words++] = word;
        if (s->words > 1 && !strcmp(s->word[0], kind))
            return 1;
    }
    return 0;
}

static unsigned long long number(const script *s, int word) {
    return word < s->words ? (unsigned long long)strtoll(s->word[word], NULL, 10) : 0;
}

/* The rest of a statement, words joined by one blank. */
static void rest_of(const script *s, int word, char *into, unsigned size) {
    *into = 0;
    for (; word < s->words; word++) {
        if (*into)
            strncat(into, " ", size - strlen(into) - 1);
        strncat(into, s->word[word], size - strlen(into) - 1);
    }
}

/* ---- devices ---- */

static unsigned index_of(device d) { return ((unsigned)(size_t)d - 1) % PARTS; }
static int slot_of(device d) { return (int)(((size_t)d - 1) / PARTS) - 1; }
static device device_of(unsigned index, int slot) { return (device)(size_t)(index + 1 + (unsigned)(slot + 1) * PARTS); }

/* "2" is device 2, "2.1" the part in its slot 1. */
static int names_device(const char *word, device d) {
    char *end;
    unsigned index = (unsigned)strtoul(word, &end, 10);
    return device_of(index, *end == '.' ? atoi(end + 1) : -1) == d;
}

/* The statement that describes the device: its UUID is the word at `*first`. */
static int find(script *s, device d, int *first) {
    int slot = slot_of(d);
    *first = slot < 0 ? 2 : 3;
    while (next(s, slot < 0 ? "gpu" : "part"))
        if (number(s, 1) == index_of(d) && (slot < 0 || (int)number(s, 2) == slot))
            return 1;
    return 0;
}

static int in_mig_mode(device d) {
    script s = script_open();
    int found = 0;
    while (!found && next(&s, "mig"))
        found = number(&s, 1) == index_of(d);
    script_close(&s);
    return found;
}

/* ---- what every call does first ---- */

static int told_to_hang(const char *function) {
    script s = script_open();
    int hang = 0;
    while (!hang && next(&s, "hang"))
        hang = !strcmp(s.word[1], function);
    script_close(&s);
    return hang;
}

static void record(const char *what, const char *function) {
    script s = script_open();
    while (next(&s, "log")) {
        FILE *log = fopen(s.word[1], "ae");
        if (log) {
            fprintf(log, "%s%s\n", what, function);
            fclose(log);
        }
    }
    script_close(&s);
}

static nvml_return enter(const char *function, device d) {
    script s;
    nvml_return code = OK;
    int hanging = 0;
    record("", function);
    for (; told_to_hang(function); usleep(5000))
        if (!hanging++)
            record("hangs in ", function);
    s = script_open();
    while (code == OK && next(&s, "error"))
        if (!strcmp(s.word[1], function) && (s.words < 4 || (d && names_device(s.word[3], d))))
            code = (nvml_return)number(&s, 2);
    script_close(&s);
    if (code == OK && !initialised && strcmp(function, "nvmlInit_v2"))
        code = UNINITIALIZED;
    return code;
}

#define ENTER(d) \
    do { \
        nvml_return entered = enter(__func__, d); \
        if (entered != OK) \
            return entered; \
    } while (0)

/* Does the list seem to have grown since it was counted? */
static int falls_short(const char *function) {
    script s = script_open();
    int asked = 0, yes = 0;
    while (next(&s, "short"))
        if (!strcmp(s.word[1], function))
            asked = (int)number(&s, 2);
    script_close(&s);
    pthread_mutex_lock(&lock);
    for (size_t i = 0; asked && i < sizeof shorts / sizeof *shorts; i++) {
        if (*shorts[i].name && strcmp(shorts[i].name, function))
            continue;
        if (shorts[i].asked != asked) {
            snprintf(shorts[i].name, sizeof shorts[i].name, "%s", function);
            shorts[i].asked = shorts[i].left = asked;
        }
        yes = shorts[i].left > 0;
        shorts[i].left -= yes;
        break;
    }
    pthread_mutex_unlock(&lock);
    return yes;
}

static unsigned long long clock_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (unsigned long long)now.tv_sec * 1000000 + (unsigned long long)now.tv_nsec / 1000;
}

static nvml_return text_answer(const char *text, char *into, unsigned size) {
    if (strlen(text) >= size)
        return INSUFFICIENT_SIZE;
    strcpy(into, text);
    return OK;
}

/* ---- the library ---- */

nvml_return nvmlInit_v2(void) {
    ENTER(NULL);
    initialised = 1;
    return OK;
}

nvml_return nvmlShutdown(void) {
    ENTER(NULL);
    initialised = 0;
    return OK;
}

nvml_return nvmlSystemGetDriverVersion(char *version, unsigned size) {
    ENTER(NULL);
    return text_answer("580.95.05", version, size);
}

nvml_return nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER(NULL);
    script s = script_open();
    for (*count = 0; next(&s, "gpu");)
        ++*count;
    script_close(&s);
    return OK;
}

nvml_return nvmlDeviceGetHandleByIndex_v2(unsigned index, device *d) {
    *d = device_of(index, -1);
    ENTER(*d);
    return OK;
}

nvml_return nvmlDeviceGetUUID(device d, char *uuid, unsigned size) {
    ENTER(d);
    script s = script_open();
    int first;
    nvml_return code = find(&s, d, &first) ? text_answer(s.word[first], uuid, size) : INVALID_ARGUMENT;
    script_close(&s);
    return code;
}

nvml_return nvmlDeviceGetName(device d, char *name, unsigned size) {
    ENTER(d);
    script s = script_open();
    int first;
    nvml_return code = INVALID_ARGUMENT;
    if (find(&s, d, &first)) {
        rest_of(&s, first + 3, name, size);
        code = strcmp(name, "-") ? OK : NOT_SUPPORTED;
    }
    script_close(&s);
    return code;
}

/* Slow on real devices: a test sees that it is called only where that is wanted. */
nvml_return nvmlDeviceGetTotalEnergyConsumption(device d, unsigned long long *energy) {
    ENTER(d);
    script s = script_open();
    nvml_return code = NOT_SUPPORTED;
    while (code != OK && next(&s, "energy"))
        if (number(&s, 1) == index_of(d)) {
            *energy = number(&s, 2);
            code = OK;
        }
    script_close(&s);
    return code;
}

nvml_return nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *memory) {
    ENTER(d);
    if (memory->version != (sizeof *memory | 2u << 24))
        return 25; /* argument version mismatch */
    script s = script_open();
    int first;
    nvml_return code = INVALID_ARGUMENT;
    if (find(&s, d, &first)) {
        memory->total = number(&s, first + 1);
        memory->used = number(&s, first + 2);
        memory->reserved = 0;
        memory->free = memory->total - memory->used;
        code = OK;
    }
    script_close(&s);
    return code;
}

nvml_return nvmlDeviceGetUtilizationRates(device d, rates *answer) {
    ENTER(d);
    script s = script_open();
    nvml_return code = NOT_SUPPORTED;
    while (code != OK && next(&s, "rate"))
        if (names_device(s.word[1], d)) {
            answer->gpu = (unsigned)number(&s, 2);
            answer->memory = 0;
            code = OK;
        }
    script_close(&s);
    return code;
}

static unsigned add_sample(sample *ring, unsigned count, unsigned long long stamp, unsigned long long since, sample_value value) {
    if (stamp <= since || count >= LIST_MAX)
        return count;
    ring[count].stamp = stamp;
    ring[count].value = value;
    return count + 1;
}

static unsigned ring_of(device d, unsigned long long since, sample *ring, int *doubles) {
    unsigned count = 0;
    script s = script_open();
    while (next(&s, "samples_are"))
        *doubles = 1;
    script_close(&s);
    s = script_open();
    while (next(&s, "sample"))
        if (names_device(s.word[1], d)) {
            sample_value value = {.wide = 0};
            if (*doubles)
                value.as_double = (double)number(&s, 3);
            else
                value.as_unsigned = (unsigned)number(&s, 3);
            count = add_sample(ring, count, number(&s, 2), since, value);
        }
    script_close(&s);
    s = script_open();
    while (next(&s, "cycle"))
        if (names_device(s.word[1], d) && s.words > 2) {
            unsigned long long newest = clock_us() / 200000, nth;
            for (nth = newest - 70; nth <= newest; nth++) {
                sample_value value = {.as_unsigned = (unsigned)number(&s, 2 + (int)(nth % (unsigned)(s.words - 2)))};
                count = add_sample(ring, count, nth * 200000, since, value);
            }
        }
    script_close(&s);
    return count;
}

nvml_return nvmlDeviceGetSamples(device d, int type, unsigned long long since, int *value_type, unsigned *count, sample *into) {
    ENTER(d);
    if (in_mig_mode(d) || type != 1) /* only NVML_GPU_UTILIZATION_SAMPLES */
        return NOT_SUPPORTED;
    sample ring[LIST_MAX];
    int doubles = 0;
    unsigned held = ring_of(d, since, ring, &doubles);
    *value_type = doubles ? 0 : 1;
    if (!held)
        return NOT_FOUND;
    if (into) {
        if (*count < held || falls_short(__func__))
            return INSUFFICIENT_SIZE;
        memcpy(into, ring, held * sizeof *ring);
    }
    *count = held;
    return OK;
}

static nvml_return list_processes(const char *function, device d, const char *kind, unsigned *count, process *into) {
    process list[LIST_MAX];
    unsigned held = 0;
    script s = script_open();
    while (next(&s, "process")) {
        /* A device in MIG mode lists the processes of its parts. */
        int here = names_device(s.word[1], d) || (slot_of(d) < 0 && strtoul(s.word[1], NULL, 10) == index_of(d));
        if (!here || s.words < 5 || strcmp(s.word[2], kind) || held >= LIST_MAX)
            continue;
        list[held].pid = (unsigned)number(&s, 3);
        list[held].bytes = number(&s, 4);
        list[held].gpu_instance = list[held].compute_instance = (unsigned)NO_INSTANCE;
        held++;
    }
    script_close(&s);
    int room = into && *count >= held && !(held && falls_short(function));
    *count = held;
    if (held && !room)
        return INSUFFICIENT_SIZE;
    if (into)
        memcpy(into, list, held * sizeof *list);
    return OK;
}

nvml_return nvmlDeviceGetComputeRunningProcesses_v3(device d, unsigned *count, process *into) {
    ENTER(d);
    return list_processes(__func__, d, "compute", count, into);
}

nvml_return nvmlDeviceGetGraphicsRunningProcesses_v3(device d, unsigned *count, process *into) {
    ENTER(d);
    return list_processes(__func__, d, "graphics", count, into);
}

nvml_return nvmlDeviceGetMPSComputeRunningProcesses_v3(device d, unsigned *count, process *into) {
    ENTER(d);
    return list_processes(__func__, d, "mps", count, into);
}

static unsigned add_use(process_use *list, unsigned count, unsigned pid, unsigned long long stamp, unsigned long long since, unsigned sm) {
    if (stamp <= since || count >= LIST_MAX)
        return count;
    process_use use = {.pid = pid, .stamp = stamp, .sm = sm};
    list[count] = use;
    return count + 1;
}

nvml_return nvmlDeviceGetProcessUtilization(device d, process_use *into, unsigned *count, unsigned long long since) {
    ENTER(d);
    if (in_mig_mode(d))
        return NOT_SUPPORTED;
    process_use list[LIST_MAX];
    unsigned held = 0;
    script s = script_open();
    while (next(&s, "use"))
        if (names_device(s.word[1], d))
            held = add_use(list, held, (unsigned)number(&s, 2), number(&s, 3), since, (unsigned)number(&s, 4));
    script_close(&s);
    s = script_open();
    while (next(&s, "using"))
        for (unsigned long long second = clock_us() / 1000000, back = 10; names_device(s.word[1], d) && back-- > 0;)
            held = add_use(list, held, (unsigned)number(&s, 2), (second - back) * 1000000, since, (unsigned)number(&s, 3));
    script_close(&s);
    if (!held)
        return NOT_FOUND;
    int room = into && *count >= held && !falls_short(__func__);
    *count = held;
    if (!room)
        return INSUFFICIENT_SIZE;
    memcpy(into, list, held * sizeof *list);
    return OK;
}

nvml_return nvmlDeviceGetMigMode(device d, unsigned *current, unsigned *pending) {
    ENTER(d);
    *current = *pending = (unsigned)in_mig_mode(d);
    return OK;
}

nvml_return nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *count) {
    ENTER(d);
    *count = 7;
    return OK;
}

nvml_return nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned slot, device *part) {
    ENTER(d);
    *part = device_of(index_of(d), (int)slot);
    script s = script_open();
    int first, found = find(&s, *part, &first);
    script_close(&s);
    return found ? OK : NOT_FOUND;
}

nvml_return nvmlDeviceGetAttributes_v2(device d, attributes *answer) {
    ENTER(d);
    script s = script_open();
    int first;
    nvml_return code = slot_of(d) >= 0 && find(&s, d, &first) ? OK : NOT_SUPPORTED;
    if (code == OK) {
        memset(answer, 0, sizeof *answer);
        answer->gpu_slices = answer->compute_slices = 1;
        answer->memory_mb = number(&s, first + 1) >> 20;
    }
    script_close(&s);
    return code;
}

