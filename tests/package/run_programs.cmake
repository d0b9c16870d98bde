# cmake -DBIN_DIR=<prefix>/bin -DCHECKPOINT=<file.safetensors> -DWORK_DIR=… -P run_programs.cmake: runs what was installed.
cmake_minimum_required(VERSION 3.25)
unset(ENV{LD_LIBRARY_PATH})
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
execute_process(COMMAND ${BIN_DIR}/fabricrun -n 2 true COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${BIN_DIR}/fabric convert ${CHECKPOINT} ${WORK_DIR}/model.pt COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${BIN_DIR}/fabric convert ${WORK_DIR}/model.pt ${WORK_DIR}/model.safetensors
  COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${BIN_DIR}/fabric verify ${WORK_DIR}/model.safetensors COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE ${WORK_DIR})
