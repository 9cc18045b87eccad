/* CUDA's runtime without a GPU: what tritonserver and the stubs of its Python models call, put in
 * front of the real libcudart by LD_PRELOAD.
 *
 * IGNITERD_CUDA_DEVICES lists the boards in PCI order, separated by ';', each as
 *     UUID,PCI,MAJOR,MINOR,SMS,CLOCK_MHZ,MEMORY_BYTES,NAME
 * CUDA_DEVICE_ORDER and CUDA_VISIBLE_DEVICES are read as the driver reads them. "Device memory" is
 * host memory. Kernels, IPC handles and the driver's entry points are not supported.
 *
 * It needs no header, so that a compiler without the C library's will do. tcc has no
 * thread-local variables and, without libtcc1, no conversion from floating point.
 */

typedef unsigned long size_t;
void *malloc(size_t);
void free(void *);
void *memcpy(void *, const void *, size_t);
void *memset(void *, int, size_t);
char *getenv(const char *);
size_t strlen(const char *);
int strncmp(const char *, const char *, size_t);
long strtol(const char *, char **, int);
int pthread_once(int *, void (*)(void));
int pthread_key_create(unsigned *, void (*)(void *));
void *pthread_getspecific(unsigned);
int pthread_setspecific(unsigned, const void *);

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101,
       PEER_UNSUPPORTED = 217, NOT_SUPPORTED = 801 };
enum { MOST = 64, TEXT = 96 };

typedef struct {
    char uuid[TEXT], pci[TEXT], name[TEXT];
    int major, minor, sms, clock_mhz;
    size_t memory;
} Board;

/* The head of cudaDeviceProp as CUDA 12 has it (1032 bytes). */
typedef struct {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t total_memory, shared_per_block;
    int regs_per_block, warp_size;
    size_t pitch;
    int threads_per_block, block[3], grid[3], clock_khz;
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch;
    int overlap, sms;
} Properties;

/* ------------------------------------------------------------ which boards, in which order */

static void text(char *to, const char **from, const char *ends)
{
    int n = 0;
    for (; **from && **from != ends[0] && **from != ends[1]; ++*from)
        if (n < TEXT - 1) to[n++] = **from;
    to[n] = 0;
    if (**from == ',') ++*from;
}

static long number(const char **from)
{
    char word[TEXT];
    text(word, from, ",;");
    return strtol(word, 0, 10);
}

static int read_boards(const char *list, Board *boards)
{
    int count = 0;
    while (list && *list && count < MOST) {
        Board *b = &boards[count++];
        text(b->uuid, &list, ",;");
        text(b->pci, &list, ",;");
        b->major = (int)number(&list);
        b->minor = (int)number(&list);
        b->sms = (int)number(&list);
        b->clock_mhz = (int)number(&list);
        b->memory = (size_t)number(&list);
        text(b->name, &list, ";;");
        if (*list == ';') ++list;
    }
    return count;
}

/* FASTEST_FIRST, the default: by multiprocessors times clock; boards alike stay in PCI order. */
static void order_boards(const Board *boards, int count, const char *order, int *ranked)
{
    int i, j;
    for (i = 0; i < count; ++i) {
        int board = i;
        long speed = (long)boards[i].sms * boards[i].clock_mhz;
        j = i;
        if (!order || strncmp(order, "PCI_BUS_ID", 11))
            for (; j > 0 && (long)boards[ranked[j - 1]].sms * boards[ranked[j - 1]].clock_mhz < speed; --j)
                ranked[j] = ranked[j - 1];
        ranked[j] = board;
    }
}

static int by_prefix(const Board *boards, int count, const char *prefix, size_t length)
{
    int i, found = -1;
    for (i = 0; i < count; ++i)
        if (length <= strlen(boards[i].uuid) && !strncmp(boards[i].uuid, prefix, length)) {
            if (found >= 0) return -1; /* not one board's alone */
            found = i;
        }
    return found;
}

static const char *past_blanks(const char *at)
{
    while (*at == ' ' || *at == '\t') ++at;
    return at;
}

/* The board that one entry of CUDA_VISIBLE_DEVICES names; -1 ends the list. */
static int named_board(const Board *boards, int count, const int *ranked, const char *entry)
{
    char *end;
    long index;
    size_t length = 0;
    entry = past_blanks(entry);
    if (!strncmp(entry, "GPU-", 4)) {
        while (entry[length] && entry[length] != ',' && entry[length] != ' ') ++length;
        return by_prefix(boards, count, entry, length);
    }
    index = strtol(entry, &end, 10);
    return end == entry || index < 0 || index >= count ? -1 : ranked[index];
}

/* Which boards a process sees: `devices`, `visible` and `order` are the variables' texts, or null.
 * Fills `seen` with places in the list of boards, in the order of device numbers; returns how many.
 * An entry that names none ends the list; one named twice leaves nothing. */
int igniterd_visible(const char *devices, const char *visible, const char *order, int *seen)
{
    Board boards[MOST];
    int ranked[MOST], count = read_boards(devices, boards), found = 0, i;
    order_boards(boards, count, order, ranked);
    if (!visible) {
        memcpy(seen, ranked, count * sizeof(int));
        return count;
    }
    for (;;) {
        int board = named_board(boards, count, ranked, visible);
        if (board < 0) return found;
        for (i = 0; i < found; ++i)
            if (seen[i] == board) return 0;
        seen[found++] = board;
        while (*visible && *visible != ',') ++visible;
        if (!*visible++) return found;
    }
}

/* ------------------------------------------------------------ this process */

static Board the_boards[MOST];
static int the_devices[MOST], the_count, started;
static unsigned current; /* each thread's device */

static void start(void)
{
    const char *list = getenv("IGNITERD_CUDA_DEVICES");
    read_boards(list, the_boards);
    the_count = igniterd_visible(
        list, getenv("CUDA_VISIBLE_DEVICES"), getenv("CUDA_DEVICE_ORDER"), the_devices);
    pthread_key_create(&current, 0);
}

static const Board *board(int device)
{
    pthread_once(&started, start);
    return device >= 0 && device < the_count ? &the_boards[the_devices[device]] : 0;
}

int cudaGetDeviceCount(int *count)
{
    board(0);
    *count = the_count;
    return the_count ? OK : NO_DEVICE;
}

int cudaGetDevice(int *device)
{
    if (!board(0)) return NO_DEVICE;
    *device = (int)(long)pthread_getspecific(current);
    return OK;
}

int cudaSetDevice(int device)
{
    if (!board(0)) return NO_DEVICE;
    if (!board(device)) return INVALID_DEVICE;
    pthread_setspecific(current, (void *)(long)device);
    return OK;
}

int cudaGetDeviceProperties_v2(void *all, int device)
{
    const Board *b = board(device);
    Properties *p = all;
    if (!b) return INVALID_DEVICE;
    memset(all, 0, 1032);
    memcpy(p->name, b->name, TEXT);
    p->total_memory = b->memory;
    p->shared_per_block = 48 << 10;
    p->regs_per_block = 65536;
    p->warp_size = 32;
    p->threads_per_block = p->block[0] = p->block[1] = 1024;
    p->block[2] = 64;
    p->grid[0] = 2147483647;
    p->grid[1] = p->grid[2] = 65535;
    p->clock_khz = 1000 * b->clock_mhz;
    p->constant_memory = 64 << 10;
    p->major = b->major;
    p->minor = b->minor;
    p->overlap = 1;
    p->sms = b->sms;
    return OK;
}

int cudaDeviceGetPCIBusId(char *id, int length, int device)
{
    const Board *b = board(device);
    if (!b) return INVALID_DEVICE;
    if ((size_t)length <= strlen(b->pci)) return INVALID_VALUE;
    memcpy(id, b->pci, strlen(b->pci) + 1);
    return OK;
}

int cudaMemGetInfo(size_t *unused, size_t *total)
{
    int device;
    if (cudaGetDevice(&device)) return NO_DEVICE;
    *unused = *total = board(device)->memory;
    return OK;
}

int cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = 0;
    return board(device) && board(peer) ? OK : INVALID_DEVICE;
}

int cudaDeviceEnablePeerAccess(int peer, unsigned flags)
{
    return PEER_UNSUPPORTED;
}

/* ------------------------------------------------------------ memory, streams, events */

int cudaMalloc(void **at, size_t bytes)
{
    if (!board(0)) return NO_DEVICE;
    *at = malloc(bytes ? bytes : 1);
    return *at ? OK : OUT_OF_MEMORY;
}

int cudaMallocManaged(void **at, size_t bytes, unsigned flags) { return cudaMalloc(at, bytes); }
int cudaHostAlloc(void **at, size_t bytes, unsigned flags) { return cudaMalloc(at, bytes); }
int cudaMallocHost(void **at, size_t bytes) { return cudaMalloc(at, bytes); }
int cudaFree(void *at) { free(at); return OK; }
int cudaFreeHost(void *at) { free(at); return OK; }
int cudaMemset(void *at, int value, size_t bytes) { memset(at, value, bytes); return OK; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind)
{
    memcpy(to, from, bytes);
    return OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream)
{
    return cudaMemcpy(to, from, bytes, kind);
}
int cudaMemcpyPeer(void *to, int to_device, const void *from, int from_device, size_t bytes)
{
    return cudaMemcpy(to, from, bytes, 0);
}
int cudaMemcpyPeerAsync(
    void *to, int to_device, const void *from, int from_device, size_t bytes, void *stream)
{
    return cudaMemcpy(to, from, bytes, 0);
}
int cudaMemPrefetchAsync(const void *at, size_t bytes, int device, void *stream) { return OK; }

int cudaStreamCreate(void **stream)
{
    return cudaMalloc(stream, 1); /* an address that nobody else has */
}
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority)
{
    return cudaStreamCreate(stream);
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
int cudaStreamDestroy(void *stream) { free(stream); return OK; }
int cudaStreamSynchronize(void *stream) { return OK; }
int cudaStreamGetFlags(void *stream, unsigned *flags) { *flags = 0; return OK; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = *greatest = 0;
    return OK;
}
int cudaDeviceSynchronize(void) { return OK; }
int cudaEventCreate(void **event) { return cudaStreamCreate(event); }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return cudaStreamCreate(event); }
int cudaEventDestroy(void *event) { free(event); return OK; }
int cudaEventRecord(void *event, void *stream) { return OK; }
int cudaEventSynchronize(void *event) { return OK; }
int cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data)
{
    function(data); /* all before it is done */
    return OK;
}

/* ------------------------------------------------------------ what there is none of */

int cudaIpcGetMemHandle(void *handle, void *at) { return NOT_SUPPORTED; }
int cudaIpcCloseMemHandle(void *at) { return NOT_SUPPORTED; }

typedef struct { char reserved[64]; } IpcHandle; /* passed by value */
int cudaIpcOpenMemHandle(void **at, IpcHandle handle, unsigned flags) { return NOT_SUPPORTED; }

int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long flags, int *found)
{
    *function = 0;
    return NOT_SUPPORTED;
}

typedef struct { unsigned x, y, z; } Dim3; /* passed by value */
int cudaLaunchKernel(
    const void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream)
{
    return NOT_SUPPORTED;
}
unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream)
{
    return NOT_SUPPORTED;
}
int __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void *stream)
{
    return NOT_SUPPORTED;
}
void **__cudaRegisterFatBinary(void *binary)
{
    static void *handle;
    return &handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterFunction(
    void **handle, const char *host, char *device, const char *name, int limit, void *thread_id,
    void *block_id, void *block, void *grid, int *warp)
{
}

int cudaGetLastError(void) { return OK; }
int cudaPeekAtLastError(void) { return OK; }
int cudaDriverGetVersion(int *version) { *version = 12060; return OK; }
int cudaRuntimeGetVersion(int *version) { *version = 12060; return OK; }
const char *cudaGetErrorString(int error)
{
    switch (error) {
    case OK: return "no error";
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    case PEER_UNSUPPORTED: return "peer access is not supported between these two devices";
    default: return "operation not supported by igniterd's emulated GPU";
    }
}
