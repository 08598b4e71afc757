// What we use of XLA's foreign-function interface, through which JAX calls us: its C ABI, laid out
// as in xla/ffi/api/c_api.h (major version 0), declared here so that building needs no JAX.
// tests/test_jax.py compares the two.
#ifndef REGARD_XLA_FFI_H
#define REGARD_XLA_FFI_H

#include <stddef.h>
#include <stdint.h>

namespace regard {
namespace xla {

struct Error;  // made by XLA

enum ErrorCode : int { kInvalidArgument = 3, kResourceExhausted = 8 };
enum DataType : int { kFloat16 = 10, kFloat32 = 11, kFloat64 = 12, kBfloat16 = 16 };
enum Stage : int { kExecute = 3 };
enum ExtensionType : int { kMetadata = 1 };

struct Extension {
  size_t struct_size;
  int type;
  Extension *next;
};

struct Version {
  size_t struct_size;
  Extension *extensions;
  int major_version, minor_version;
};

struct ErrorArguments {
  size_t struct_size;
  Extension *extensions;
  const char *message;
  int code;
};

struct Api {
  size_t struct_size;
  Extension *extensions;
  Version version;
  const void *internal;
  Error *(*create_error)(ErrorArguments *);
};

struct Buffer {
  size_t struct_size;
  Extension *extensions;
  int dtype;
  void *data;  // dense, the last dimension fastest
  int64_t rank;
  int64_t *dims;
};

struct Buffers {
  size_t struct_size;
  Extension *extensions;
  int64_t size;
  int *types;
  Buffer **items;
};

struct Text {
  const char *data;
  size_t size;
};

struct Scalar {
  int dtype;
  void *value;
};

// Ordered by name.
struct Attributes {
  size_t struct_size;
  Extension *extensions;
  int64_t size;
  int *types;
  Text **names;
  Scalar **items;
};

struct CallFrame {
  size_t struct_size;
  Extension *extensions;
  const Api *api;
  void *context;
  int stage;
  Buffers arguments, results;
  Attributes attributes;
};

// XLA asks for it when a handler is registered.
struct Metadata {
  size_t struct_size;
  Version version;
  uint32_t traits;
};

struct MetadataExtension {
  Extension base;
  Metadata *metadata;
};

}  // namespace xla
}  // namespace regard
#endif
