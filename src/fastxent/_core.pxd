# What _dense.pyx and _step.pyx share with _core.pyx: the chosen table and the team.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef extern from "table.hpp" namespace "fx" nogil:
    struct Matrix:
        char* data
        Py_ssize_t outer
        Py_ssize_t cls
        Py_ssize_t inner
    struct SoftmaxRows:
        int storage
        int family
        double a
        double b
        int divergence
        int teacher_logits
        Py_ssize_t inner
        Py_ssize_t classes
        Matrix logits
        Matrix labels
        int label_kind
        Matrix soft
        Matrix weight
        const void* class_weight
        const void* bias
        double smoothing
        int exclude
        int has_ignore
        int64_t ignore
        double z_loss
        double temperature
        double scale
        Matrix loss
        Matrix lse
        Matrix grad
        Matrix hess
        int stream
        Matrix x
    struct Solve:
        const SoftmaxRows* terms
        const int* groups
        int n_terms
        int n_groups
        int storage
        Py_ssize_t inner
        Py_ssize_t classes
        Matrix damping
        Matrix rhs
        Matrix out
    struct Shard:
        int storage
        Py_ssize_t classes
        Matrix logits
        const int64_t* labels
        int64_t start
        double* m
        double* r
        double* t
        double* Z
        const double* pull
        const double* weight
        double spread
        double share
        Matrix grad
    struct Box:
        Matrix at
        Py_ssize_t region
    struct Region:
        int storage
        int activation
        int soft_labels
        int per_class
        Py_ssize_t inner
        Py_ssize_t classes
        double alpha
        double beta
        Box values
        Box targets
        Box weight
        Box grad
        const double* slopes
    struct BlockOut:
        double loss
        double total
        int64_t counted
        int64_t bad
    struct Elements:
        int storage
        int family
        double a
        double b
        double c
        Py_ssize_t cols
        Matrix values
        Matrix targets
        Matrix weight
        Matrix pos_weight
        double smoothing
        double scale
        Matrix loss
        Matrix grad
        Matrix hess
        int stream
    struct ElementsOut:
        double loss
        double total
        int64_t bad_target
        int64_t bad_value
    struct Tall:
        Py_ssize_t rows
        Py_ssize_t d
        Py_ssize_t K
        const void* X
        Py_ssize_t row
        Py_ssize_t col
        const void* W
        const void* bias
        void* Z
        double* sums
    struct Panel:
        Py_ssize_t rows
        Py_ssize_t d
        Py_ssize_t K
        const void* X
        Py_ssize_t row
        Py_ssize_t col
        void* panels
        const void* W
        Py_ssize_t row_W
        Py_ssize_t col_W
        const void* bias
        void* Z
        void* dW
        int first
        double* db
    struct Boost:
        Py_ssize_t classes
        Matrix margins
        Matrix grad
        Matrix hess
        const char* labels
        Py_ssize_t label_stride
        int label_kind
        const char* weight
        Py_ssize_t weight_stride
        int weight_double
        const void* class_weight
        double factor
        double floor
        int stream
        int* odd
    ctypedef void (*rows_fn)(const SoftmaxRows*, Py_ssize_t, Py_ssize_t, char*, BlockOut*) noexcept nogil
    ctypedef void (*solve_fn)(const Solve*, Py_ssize_t, Py_ssize_t, char*) noexcept nogil
    ctypedef void (*shard_fn)(const Shard*, Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef void (*region_fn)(const Region*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, char*) noexcept nogil
    ctypedef void (*elements_fn)(const Elements*, Py_ssize_t, Py_ssize_t, ElementsOut*) noexcept nogil
    struct NetLayer:
        Py_ssize_t fan_in "in"
        Py_ssize_t out
        Py_ssize_t band
        char* W
        char* b
        char* mW
        char* mb
        char* vW
        char* vb
        char* gW
        char* gb
        char* a
        char* slope
        char* delta
        uint64_t drop_at
    struct Rule:
        int kind
        double b1
        double b2
        double c
        double e
        double shrink
        double keep
        double clip
    struct Network:
        int layers
        int activation
        NetLayer* layer
        Py_ssize_t capacity
        Py_ssize_t count
        const Py_ssize_t* rows
        const Py_ssize_t* next_rows
        Py_ssize_t next_count
        const char* X
        Py_ssize_t row_stride
        Py_ssize_t col_stride
        const char* indptr
        const char* indices
        int wide_indices
        char* x
        char* next_x
        char* logits
        uint64_t drop_seed
        uint64_t drop_below
        double drop_scale
        Py_ssize_t head
        double penalty
        Rule rule
    enum:
        SGD, NESTEROV, ADAM, ADAM_FIRST, IDENTITY, RELU
        GATHER, FORWARD, LOGITS, LOGIT_DELTA, BACKWARD, SPARSE_GRADIENT, GRADIENT, NORM, UPDATE
        NET_ROWS, NET_COLS, NET_GATHER, NET_PACK
    ctypedef void (*piece_fn)(const Network*, int, int, Py_ssize_t, char*, double*) noexcept nogil
    ctypedef void (*tall_fn)(const Tall*) noexcept nogil
    ctypedef void (*panel_gather_fn)(const Panel*, Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef void (*panel_logits_fn)(const Panel*, Py_ssize_t, Py_ssize_t, char*) noexcept nogil
    ctypedef void (*panel_grads_fn)(const Panel*, Py_ssize_t, Py_ssize_t, void*, int, char*) noexcept nogil
    ctypedef void (*panel_sum_fn)(const Panel*, const void*, Py_ssize_t, Py_ssize_t, Py_ssize_t, void*) noexcept nogil
    ctypedef void (*boost_fn)(const Boost*, Py_ssize_t, Py_ssize_t, char*) noexcept nogil
    struct Table:
        const char* name
        rows_fn softmax[2]
        rows_fn hvp[2]
        rows_fn totals[2]
        rows_fn divergence[2]
        rows_fn upper[2]
        solve_fn solve[2]
        shard_fn partial[2]
        shard_fn partial_grad[2]
        region_fn region[2]
        region_fn region_grad[2]
        elements_fn sigmoid[2]
        elements_fn binary[2]
        elements_fn weights[2]
        piece_fn network[2]
        tall_fn tall_logits[2]
        tall_fn tall_sums[2]
        boost_fn boost[2]
        panel_gather_fn panel_gather[2]
        panel_logits_fn panel_logits[2]
        panel_grads_fn panel_grads[2]
        panel_sum_fn panel_sum[2]
        int panel_width[2]
        int lanes[2]
    Py_ssize_t rows_per_block(const SoftmaxRows*, Py_ssize_t)
    Py_ssize_t scratch_of(const SoftmaxRows*)
    Py_ssize_t solve_scratch "fx::scratch_of"(const Solve*)
    Py_ssize_t region_scratch "fx::scratch_of"(const Region*)
    Py_ssize_t boost_scratch "fx::scratch_of"(const Boost*)
    Py_ssize_t tall_most(int lanes)
    Py_ssize_t tall_width(Py_ssize_t K, int lanes)
    Py_ssize_t panel_scratch(Py_ssize_t rows, Py_ssize_t classes, int width, int item)

cdef extern from "team.hpp" namespace "fx" nogil:
    ctypedef void (*block_fn)(void*, Py_ssize_t, int) noexcept nogil
    ctypedef int (*poll_fn)() noexcept nogil

cdef const Table* kernels() noexcept
cdef int over_blocks(block_fn run, void* context, Py_ssize_t blocks, int threads) except -1
cdef int team_size(int asked) noexcept
cdef int set_labels(SoftmaxRows* call, object labels, object ignore_index) except -1
