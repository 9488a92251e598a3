// x y + z, rounded once where the processor can: said, and not left to the compiler, where a number
// must not depend on the lines around it. A file of its own, since these headers are most of what a
// small source takes to compile.
#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "vectors.h"

namespace {  // nothing of this is seen outside the library

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));

#if defined(__AVX512F__)
inline Floats fused(Floats x, Floats y, Floats z) { return Floats(_mm512_fmadd_ps(x, y, z)); }
inline Doubles fused(Doubles x, Doubles y, Doubles z) { return Doubles(_mm512_fmadd_pd(x, y, z)); }
#elif defined(__AVX__) && defined(__FMA__)
inline Floats fused(Floats x, Floats y, Floats z) { return Floats(_mm256_fmadd_ps(x, y, z)); }
inline Doubles fused(Doubles x, Doubles y, Doubles z) { return Doubles(_mm256_fmadd_pd(x, y, z)); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
inline Floats fused(Floats x, Floats y, Floats z) { return Floats(vfmaq_f32(z, x, y)); }
inline Doubles fused(Doubles x, Doubles y, Doubles z) { return Doubles(vfmaq_f64(z, x, y)); }
#else
inline Vector fused(Vector x, Vector y, Vector z) { return x * y + z; }
#endif

}  // namespace
