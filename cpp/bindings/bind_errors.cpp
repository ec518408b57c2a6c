#include <c10/util/Exception.h>

#include "bindings.h"
#include "emmet/error.h"

namespace emmet::python {
namespace {

py::object error_type(const char* name) { return py::module_::import("emmet._core").attr(name); }

// Errors that carry more than what() says, or that say too much in it. Tried before the plain types.
void translate(std::exception_ptr raised) {
  try {
    std::rethrow_exception(std::move(raised));
  } catch (const DependentKeysError& error) {
    const py::object type = error_type("DependentKeysError");
    const py::object instance = type(error.what());
    instance.attr("groups") = error.groups();
    PyErr_SetObject(type.ptr(), instance.ptr());
  } catch (const c10::OutOfMemoryError& error) {
    PyErr_SetString(PyExc_MemoryError, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    const std::string text = error.what_without_backtrace();
    if (const auto cause = text.find("DefaultCPUAllocator"); cause != std::string::npos) {  // of no type of its own
      PyErr_SetString(PyExc_MemoryError, text.c_str() + cause);
      return;
    }
    const std::string first_line = text.substr(0, text.find('\n'));  // a list of torch's backends may follow
    PyErr_SetString(error_type("EmmetError").ptr(), first_line.c_str());
  }
}

}  // namespace

void bind_errors(py::module_& module) {
  auto& base = py::register_local_exception<Error>(module, "EmmetError", PyExc_ValueError);
  base.doc() = "Base of every error that emmet raises.";
  py::register_local_exception<ShapeError>(module, "ShapeError", base).doc() =
      "A tensor has the wrong shape, dtype or device.";
  py::register_local_exception<NonFiniteError>(module, "NonFiniteError", base).doc() =
      "NaN or Inf where finite numbers are needed.";
  py::register_local_exception<NotPositiveDefiniteError>(module, "NotPositiveDefiniteError", base).doc() =
      "A matrix has no Cholesky factor, as a second moment of too few keys or a system whose ridge is too small; or a\n"
      "metric is too ill-conditioned for a constraint.";
  py::register_local_exception<FormatError>(module, "FormatError", base).doc() =
      "A file is not what it should be: truncated, malformed or of another kind.";

  py::exception<DependentKeysError>(module, "DependentKeysError", base).doc() =
      "The equality constraint cannot be met: some keys coincide or are linearly dependent.\n\n"
      "``groups`` lists the row indices, from 0, of the dependent keys, one list for each dependency that was found.";
  py::register_local_exception_translator(&translate);
}

}  // namespace emmet::python
