/*
 * Compile a model for an Intel NPU, without one, and write the blob.
 *
 *     npuc MODEL BLOB [--tokens N] [KEY=VALUE]...
 *
 * MODEL is an OpenVINO IR (.xml) or an ONNX file, BLOB the file to write, and each KEY=VALUE a property for the compiler.
 * With --tokens, the inputs get the shape [1, N, ...] where their dimensions are open; without, they keep their shapes.
 * What the compiler logs goes to standard output. So does the last line: `npuc: done`, and the exit status is 0, or
 * `npuc: failed: STEP: MESSAGE`, whose message may have more lines, and it is 1. After wrong usage, it is 2.
 *
 * A program for Windows that asks for no compiler for Windows: it declares what it calls itself, as the headers of a C
 * library for Linux would not fit, starts without a C runtime, and is linked against the DLLs themselves (see install.sh).
 */
typedef unsigned long long size;
typedef long long integer;

/* Of msvcrt.dll. */
int printf(const char* format, ...);
int fflush(void* stream);
int strcmp(const char* one, const char* other);
char* strchr(const char* text, int sign);
void* calloc(size count, size bytes);
integer _atoi64(const char* text);
__attribute__((noreturn)) void _exit(int status);
int __getmainargs(int* argc, char*** argv, char*** environment, int wildcards, int* mode);

/* Of openvino_c.dll. A status of 0 is success. */
typedef struct { const char *number, *description; } version;
typedef struct { const char* key; const void* value; } property;
typedef struct { integer least, most; } dimension;
typedef struct { dimension rank; dimension* of; } shape;
typedef struct core core;
typedef struct model model;
typedef struct compiled compiled;
typedef struct port port;
int ov_get_openvino_version(version* version);
const char* ov_get_last_err_msg(void);
int ov_core_create(core** core);
int ov_core_read_model(const core* core, const char* path, const char* weights, model** model);
int ov_core_compile_model_props(
    const core* core, const model* model, const char* device, size count, const property* properties, compiled** compiled);
int ov_compiled_model_export_model(const compiled* compiled, const char* path);
int ov_model_inputs_size(const model* model, size* count);
int ov_model_const_input_by_index(const model* model, size index, port** port);
int ov_port_get_partial_shape(const port* port, shape* shape);
int ov_model_reshape_by_port_indexes(const model* model, const size* indexes, const shape* shapes, size count);

/* End at once: the destructors of the libraries are of no use now. */
__attribute__((noreturn)) static void end(int status) {
    fflush(0);
    _exit(status);
}

/* End with a message if a step failed. */
static void need(int status, const char* step) {
    if (status == 0) return;
    const char* message = ov_get_last_err_msg();
    printf("npuc: failed: %s: %s\n", step, message ? message : "no message");
    end(1);
}

static void* zeros(size count, size bytes) {
    void* memory = calloc(count + 1, bytes);
    if (memory) return memory;
    printf("npuc: failed: start: out of memory\n");
    end(1);
}

__attribute__((noreturn)) static void usage(void) {
    printf("npuc: usage: npuc MODEL BLOB [--tokens N] [KEY=VALUE]...\n");
    end(2);
}

/* Close the open dimensions of all inputs: the first one is 1, others are the number of tokens. */
static void close_shapes(const model* model, integer tokens) {
    size count = 0;
    need(ov_model_inputs_size(model, &count), "inputs");
    size* indexes = zeros(count, sizeof *indexes);
    shape* shapes = zeros(count, sizeof *shapes);
    for (size i = 0; i < count; i++) {
        port* input = 0;
        indexes[i] = i;
        need(ov_model_const_input_by_index(model, i, &input), "input");
        need(ov_port_get_partial_shape(input, &shapes[i]), "shape of an input");
        for (integer d = 0; d < shapes[i].rank.most; d++) {
            dimension* open = &shapes[i].of[d];
            if (open->least != open->most) open->least = open->most = d == 0 ? 1 : tokens;
        }
    }
    need(ov_model_reshape_by_port_indexes(model, indexes, shapes, count), "shapes of the inputs");
}

void start(void) {
    int argc = 0, mode = 0;
    char **argv, **environment;
    __getmainargs(&argc, &argv, &environment, 0, &mode);
    if (argc < 3) usage();
    integer tokens = 0;
    size count = 0;
    property* properties = zeros(argc, sizeof *properties);
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--tokens") == 0) {
            tokens = i + 1 < argc ? _atoi64(argv[++i]) : 0;
            if (tokens < 1) usage();
            continue;
        }
        char* equals = strchr(argv[i], '=');
        if (!equals) usage();
        *equals = 0;
        properties[count].key = argv[i];
        properties[count++].value = equals + 1;
    }

    version runtime;
    core* core = 0;
    model* model = 0;
    compiled* compiled = 0;
    need(ov_get_openvino_version(&runtime), "version");
    printf("npuc: OpenVINO %s\n", runtime.number);
    need(ov_core_create(&core), "start");
    need(ov_core_read_model(core, argv[1], 0, &model), "read");
    if (tokens) close_shapes(model, tokens);
    fflush(0);
    need(ov_core_compile_model_props(core, model, "NPU", count, properties, &compiled), "compile");
    need(ov_compiled_model_export_model(compiled, argv[2]), "export");
    printf("npuc: done\n");
    end(0);
}
