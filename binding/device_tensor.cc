// createDeviceTensor, copyDeviceTensor: tensors in a device's memory, and the copies that users ask for.
#include "arguments.h"
#include "exports.h"
#include "work.h"

namespace tl::binding {
namespace {

class CopyTensor : public Work {
 public:
  std::shared_ptr<DeviceTensor> tensor;
  Operand host;
  Device* device = nullptr;
  bool toDevice = false;

 protected:
  Status execute() override { return device->copy(*tensor->block, host.data, host.bytes, toDevice); }
};

}  // namespace

Napi::Value createDeviceTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "createDeviceTensor", [&]() -> Napi::Value {
    Arguments arguments(info, "createDeviceTensor");
    const int64_t bytes = arguments.integer(0, "bytes", 0, int64_t(1) << 53);
    auto tensor = std::make_shared<DeviceTensor>();
    tensor->dtype = DType(arguments.integer(1, "dtype", int(DType::f32), int(DType::i64)));
    Device* device = arguments.cudaDevice();
    if (!arguments.ok()) return arguments.fail();
    if (const Status status = DeviceBlock::make(*device, "tensor", bytes, tensor->block)) return raise(info.Env(), status);
    return wrap(info.Env(), std::move(tensor));
  });
}

// copyDeviceTensor(tensor, values, toDevice)
Napi::Value copyDeviceTensor(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), "copyDeviceTensor", [&]() -> Napi::Value {
    Arguments arguments(info, "copyDeviceTensor");
    auto work = std::make_unique<CopyTensor>();
    work->tensor = arguments.object<DeviceTensor>(info[0], "tensor");
    work->host = arguments.memory(info[1], "values");
    work->toDevice = info[2].ToBoolean();
    work->device = arguments.cudaDevice();
    if (arguments.ok() && (!fits(work->tensor->dtype, work->host.dtype) || work->host.bytes != work->tensor->block->bytes())) arguments.set("values", "expected an array of the tensor's type and length");
    if (!arguments.ok()) return arguments.fail();
    work->keep(info[1]);
    return Work::start(info.Env(), std::move(work), "tokenloom.copy");
  });
}

}  // namespace tl::binding
