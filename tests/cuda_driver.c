/* A CUDA driver without a device: memory is the host's, kernels do nothing, launches are written to a file.

   What numba-cuda, cuda.core and cuda.bindings ask of libcuda.so.1 until a kernel is launched, so that their own code
   runs: two devices of compute capability 9.0, contexts that are current for a thread, streams, events, libraries. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default"))) int

typedef uint64_t handle;

enum { DEVICES = 2, NOT_FOUND = 500, NO_CONTEXT = 201, CONTEXT = 0x1000, DEPTH = 64 };

static __thread handle current[DEPTH];
static __thread int depth = 0;

static void say(const char *what, handle stream, handle context, const char *name) {
    const char *path = getenv("FAKE_CUDA_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (file) {
        fprintf(file, "%s stream %lx device %ld %s\n", what, (long)stream, (long)context - CONTEXT, name);
        fclose(file);
    }
}

static handle context(void) { return depth ? current[depth - 1] : 0; }

API cuInit(unsigned flags) { return 0; }
API cuDriverGetVersion(int *version) { *version = 13000; return 0; }
API cuGetErrorName(int error, const char **name) { *name = "FAKE"; return 0; }
API cuGetErrorString(int error, const char **text) { *text = "fake"; return 0; }

/* devices and contexts */
API cuDeviceGetCount(int *count) { *count = DEVICES; return 0; }
API cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
API cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Fake"); return 0; }
API cuDeviceGetUuid(char *uuid, int device) { memset(uuid, device + 1, 16); return 0; }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 10 ? 32 : attribute == 1 ? 1024 : 1;
    return 0;
}
API cuDevicePrimaryCtxRetain(handle *made, int device) { *made = CONTEXT + device; return 0; }
API cuDevicePrimaryCtxRelease(int device) { return 0; }
API cuCtxPushCurrent(handle pushed) { current[depth++] = pushed; return 0; }
API cuCtxPopCurrent(handle *popped) {
    if (!depth)
        return NO_CONTEXT;
    *popped = current[--depth];
    return 0;
}
API cuCtxGetCurrent(handle *got) { *got = context(); return 0; }
API cuCtxSetCurrent(handle set) { current[depth ? depth - 1 : depth++] = set; return 0; }
API cuCtxGetDevice(int *device) { *device = (int)(context() - CONTEXT); return depth ? 0 : NO_CONTEXT; }
API cuCtxSynchronize(void) { say("wait", 0, context(), ""); return 0; }

/* memory */
API cuMemGetInfo(size_t *unused, size_t *total) { *unused = *total = (size_t)1 << 36; return 0; }
API cuMemAlloc(handle *made, size_t bytes) {
    void *memory = NULL;
    int failed = posix_memalign(&memory, 512, bytes ? bytes : 1);
    *made = (handle)memory;
    return failed ? 2 : 0;
}
API cuMemFree(handle memory) { free((void *)memory); return 0; }
API cuMemcpyHtoD(handle to, const void *from, size_t bytes) { memcpy((void *)to, from, bytes); return 0; }
API cuMemcpyDtoH(void *to, handle from, size_t bytes) {
    say("wait", 0, context(), "");
    memcpy(to, (void *)from, bytes);
    return 0;
}

/* streams and events */
API cuStreamSynchronize(handle stream) { say("wait", stream, context(), ""); return 0; }
API cuStreamWaitEvent(handle stream, handle event, unsigned flags) {
    say("after an event", stream, context(), "");
    return 0;
}
API cuEventCreate(handle *made, unsigned flags) { *made = (handle)malloc(1); return 0; }
API cuEventDestroy(handle event) { free((void *)event); return 0; }
API cuEventRecord(handle event, handle stream) { say("event", stream, context(), ""); return 0; }

/* kernels: a handle is the kernel's name */
API cuLibraryLoadData(
    handle *made, const void *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f
) {
    say("load", 0, context(), "");
    *made = (handle)malloc(1);
    return 0;
}
API cuLibraryUnload(handle library) { return 0; }
API cuLibraryGetKernel(handle *kernel, handle library, const char *name) {
    *kernel = (handle)strdup(name);
    return 0;
}
API cuKernelGetAttribute(int *value, int attribute, handle kernel, int device) { *value = 32; return 0; }
API cuLaunchKernel(
    handle kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
    handle stream, void **arguments, void **extra
) {
    if (!depth)
        return NO_CONTEXT;
    say("direct", stream, context(), (char *)kernel);
    return 0;
}
struct launch { unsigned gx, gy, gz, bx, by, bz, shared; handle stream; };
API cuLaunchKernelEx(struct launch *how, handle kernel, void **arguments, void **extra) {
    if (!depth)
        return NO_CONTEXT;
    say("numba", how->stream, context(), (char *)kernel);
    return 0;
}

API cuGetProcAddress_v2(const char *name, void **found, int version, uint64_t flags, int *status) {
    Dl_info own;
    dladdr((void *)cuInit, &own);
    void *self = dlopen(own.dli_fname, RTLD_NOW);
    *found = strcmp(name, "cuGetProcAddress") ? dlsym(self, name) : (void *)cuGetProcAddress_v2;
    if (status)
        *status = *found == NULL;
    return *found ? 0 : NOT_FOUND;
}
