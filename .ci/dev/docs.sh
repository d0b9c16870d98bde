# Read by ./dev: the API reference.

public_headers() { git ls-files --cached --others --exclude-standard 'fabric/*.h' |
  grep -vE '(_internal|_test_support)\.h$|^fabric/torch/' | sort -u; }

version() { sed -nE 's/^#define FABRIC_VERSION "([^"]+)"/\1/p' fabric/version.h; }

cmd_docs() {
  require_packages doxygen
  command -v doxygen >/dev/null || die "doxygen is not installed"
  mkdir -p build/docs
  FABRIC_VERSION=$(version) FABRIC_HEADERS=$(public_headers | tr '\n' ' ') FABRIC_DOCS=build/docs \
    doxygen fabric/docs/Doxyfile || die "Doxygen complains (above)"
  step "the API reference is build/docs/html/index.html"
}
