// The Lagrange multiplier that returns a proposal to the sphere (Eq. 36 of arXiv 2603.29529).
#pragma once

#include "host_device.h"

namespace thermosphere {

struct SphereRoot {
  double multiplier;  // l = λ dt²
  bool reachable;
};

// l of smaller magnitude with S3 l² + 2 S1 l + (S2 - Q) = 0, where w' = w̃ + l w/M,
// S1 = Σ w̃ w/M, S2 = Σ w̃², S3 = Σ (w/M)². Written without the cancellation of -S1 ± √…
THERMOSPHERE_INLINE SphereRoot sphere_root(double s1, double s2, double s3, double norm2) {
  const double excess = norm2 - s2;
  const double discriminant = s1 * s1 + s3 * excess;
  if (!(discriminant >= 0.0)) return SphereRoot{0.0, false};  // also where a sum is NaN
  const double root = __builtin_sqrt(discriminant);
  const double denominator = s1 >= 0.0 ? s1 + root : s1 - root;
  if (denominator == 0.0) return SphereRoot{0.0, excess == 0.0};
  return SphereRoot{excess / denominator, true};
}

}  // namespace thermosphere
