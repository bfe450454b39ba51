# What _dense.pyx and _step.pyx share: threads that stay together over many items (_kernels/crew.hpp).
cdef extern from "crew.hpp" namespace "fx" nogil:
    double seconds_now()
    ctypedef void (*item_fn)(void*, Py_ssize_t, int) noexcept nogil
    cdef cppclass Crew:
        Crew(item_fn, void*) except +
        void all(Py_ssize_t)
        void end()
        bint over()
        void help(int)
