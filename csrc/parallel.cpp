// PyTorch's idle OpenMP workers spin; a second pool of threads beside them waits for cores it could have
// had. So work is handed to the OpenMP runtime that is already in the process (libgomp, libiomp5 and libomp
// all export GOMP_parallel), found at run time so that the extension links none. Without one: std::thread.
#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>
#if defined(__linux__)
#include <link.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

namespace thermosphere {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

struct Runtime {
  GompParallel parallel = nullptr;
  std::string name = "std::thread";
};

// libgomp does not survive fork: a child would wait for ever for workers that were not copied into it. So
// there the work goes to std::thread. A fork before this is loaded goes unseen: a child that is to import the
// package needs it imported before, or THERMOSPHERE_THREADING=std.
std::atomic<bool> forked{false};
[[maybe_unused]] const int fork_watch = pthread_atfork(nullptr, nullptr, [] { forked = true; });

#if defined(__linux__)
// dl_iterate_phdr: the first loaded OpenMP runtime.
int find_openmp(dl_phdr_info* info, size_t, void* data) {
  const char* path = info->dlpi_name;
  if (path == nullptr) return 0;
  const char* slash = std::strrchr(path, '/');
  const char* file = slash != nullptr ? slash + 1 : path;
  if (std::strncmp(file, "libgomp", 7) != 0 && std::strncmp(file, "libiomp5", 8) != 0 &&
      std::strncmp(file, "libomp", 6) != 0)
    return 0;
  *static_cast<std::string*>(data) = path;
  return 1;
}
#endif

Runtime find_runtime() {
  Runtime runtime;
  const char* choice = std::getenv("THERMOSPHERE_THREADING");
  if (choice != nullptr && std::strcmp(choice, "std") == 0) return runtime;
#if defined(__linux__)
  std::string path;
  if (dl_iterate_phdr(find_openmp, &path) == 0) return runtime;
  void* library = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return runtime;
  if (void* symbol = dlsym(library, "GOMP_parallel")) {
    runtime.parallel = reinterpret_cast<GompParallel>(symbol);
    runtime.name = "openmp (" + path.substr(path.rfind('/') + 1) + ")";
  }
#endif
  return runtime;
}

const Runtime& runtime() {
  static const Runtime found = find_runtime();
  return found;
}

bool has_openmp() { return runtime().parallel != nullptr && !forked; }

struct Team {
  std::atomic<int> next_share{0};
  int shares;
  int64_t tasks;
  void (*body)(void*, int64_t);
  void* context;
  std::atomic<bool> failed{false};
  std::exception_ptr error;  // of the first task that threw; written by one thread, read after all are done
};

// A thread takes contiguous shares until none is left: right also when the runtime grants fewer threads.
// Nothing may be thrown through an OpenMP runtime's frames or out of a thread.
void work(void* data) {
  Team& team = *static_cast<Team*>(data);
  try {
    for (int share = team.next_share++; share < team.shares; share = team.next_share++) {
      const int64_t first = team.tasks * share / team.shares;
      const int64_t last = team.tasks * (share + 1) / team.shares;
      for (int64_t task = first; task < last; ++task) team.body(team.context, task);
    }
  } catch (...) {
    if (!team.failed.exchange(true)) team.error = std::current_exception();
  }
}

}  // namespace

void parallel_for(int64_t tasks, int threads, void (*body)(void*, int64_t), void* context) {
  const int shares = static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(tasks, 1)));
  if (shares == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(context, task);
    return;
  }
  Team team{.shares = shares, .tasks = tasks, .body = body, .context = context, .error = nullptr};
  if (has_openmp()) {
    runtime().parallel(work, &team, static_cast<unsigned>(shares), 0);
  } else {
    std::vector<std::thread> others;
    others.reserve(static_cast<size_t>(shares) - 1);
    try {
      for (int i = 1; i < shares; ++i) others.emplace_back(work, &team);
    } catch (const std::exception&) {
      // No more threads to be had: those there are take all shares.
    }
    work(&team);
    for (std::thread& other : others) other.join();
  }
  if (team.error) std::rethrow_exception(team.error);
}

std::string parallel_backend() { return has_openmp() ? runtime().name : "std::thread"; }

}  // namespace thermosphere
