# What _dense.pyx shares with _core.pyx: the chosen table and the team.
from libc.stdint cimport int64_t

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
    ctypedef void (*rows_fn)(const SoftmaxRows*, Py_ssize_t, Py_ssize_t, char*, BlockOut*) noexcept nogil
    ctypedef void (*solve_fn)(const Solve*, Py_ssize_t, Py_ssize_t, char*) noexcept nogil
    ctypedef void (*shard_fn)(const Shard*, Py_ssize_t, Py_ssize_t) noexcept nogil
    ctypedef void (*region_fn)(const Region*, Py_ssize_t, Py_ssize_t, Py_ssize_t, double*, char*) noexcept nogil
    ctypedef void (*elements_fn)(const Elements*, Py_ssize_t, Py_ssize_t, ElementsOut*) noexcept nogil
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
    Py_ssize_t scratch_of(const SoftmaxRows*)
    Py_ssize_t solve_scratch "fx::scratch_of"(const Solve*)
    Py_ssize_t region_scratch "fx::scratch_of"(const Region*)
    const int LANES

cdef extern from "team.hpp" namespace "fx" nogil:
    ctypedef void (*block_fn)(void*, Py_ssize_t, int) noexcept nogil
    ctypedef int (*poll_fn)() noexcept nogil

cdef const Table* kernels() noexcept
cdef int over_blocks(block_fn run, void* context, Py_ssize_t blocks, int threads) except -1
cdef int team_size(int asked) noexcept
cdef int set_labels(SoftmaxRows* call, object labels, object ignore_index) except -1
