# C types of frames.py.
cimport cython

from actormq.kernels.records cimport load_i32, pointer_const

@cython.locals(data="const unsigned char *", at=cython.Py_ssize_t, length=cython.longlong)
cpdef tuple cut_frames(const unsigned char[::1] view, Py_ssize_t end, long long frame_bytes_max)
